// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * xen_saver.c - is libxl about to save the domain? See checkpoint/xen.h.
 *
 * Who saves a domain asks it to suspend as we do, and takes the next suspend that he sees for his own; `xl save` leaves
 * no other trace in Xen or xenstore. But libxl starts a program for it before it asks. To look for that among all
 * processes is too slow for each pause; so its file is watched, and only who has opened it makes us look. The file is
 * opened before the program runs, so nobody asks for a suspend of whom we have not been told.
 */
#include "checkpoint/xen.h"

#include <dirent.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <sys/inotify.h>
#include <unistd.h>

#define HELPER "libxl-save-helper"
#define STARTING_NS FT_S_NS             /* from its file's being opened until it can be recognised, amply */
#define LOOK_NS (500 * FT_MS_NS)

bool xen_saver_is(const char *text, size_t len, uint32_t domid)
{
	static const char mode[] = HELPER "\0--save-domain";
	const char *at = memmem(text, len, mode, sizeof(mode)), *end = text + len;

	at = at ? at + sizeof(mode) : end;
	for (unsigned skip = 2; skip && at < end; skip--)
		at += strnlen(at, (size_t)(end - at)) + 1;
	return at < end && memchr(at, 0, (size_t)(end - at)) && strtoul(at, NULL, 10) == domid;
}

bool xen_saver_runs(uint32_t domid)
{
	DIR *proc = opendir("/proc");
	bool found = false;
	struct dirent *e;

	while (proc && !found && (e = readdir(proc))) {
		char path[sizeof(e->d_name) + 16], text[512];
		ssize_t n;
		int fd;

		if (*e->d_name < '1' || *e->d_name > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/cmdline", e->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
		text[n > 0 ? n : 0] = 0;
		found = n > 0 && xen_saver_is(text, (size_t)n, domid);
		if (fd >= 0)
			close(fd);
	}
	if (proc)
		closedir(proc);
	return found;
}

void xen_saver_open(struct xen_saver *s, uint32_t domid)
{
	static const char *const places[] = { "/usr/lib/xen*/bin/" HELPER, "/usr/libexec/xen*/bin/" HELPER,
					      "/usr/local/lib/xen*/bin/" HELPER, "/usr/local/libexec/xen*/bin/" HELPER };
	unsigned nr = 0;

	*s = (struct xen_saver){ .domid = domid, .fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK), .told = true };
	for (size_t i = 0; i < FT_ARRAY_LEN(places) && s->fd >= 0; i++) {
		glob_t found;

		if (glob(places[i], 0, NULL, &found))
			continue;
		for (size_t k = 0; k < found.gl_pathc; k++)
			nr += inotify_add_watch(s->fd, found.gl_pathv[k], IN_OPEN) >= 0;
		globfree(&found);
	}
	if (!nr)
		xen_saver_close(s);
	ft_debug("domain %u: %u programs that save domains are watched", domid, nr);
}

void xen_saver_close(struct xen_saver *s)
{
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
}

/* Whoever it was for. */
static bool was_opened(struct xen_saver *s)
{
	char events[1024];
	bool any = s->fd < 0;

	while (s->fd >= 0 && read(s->fd, events, sizeof(events)) > 0)
		any = true;
	return any;
}

bool xen_saver_came(struct xen_saver *s)
{
	uint64_t now = ft_now_ns();

	if (was_opened(s)) {
		s->opened_ns = now;
		s->told = true;
	}
	if (!s->told)
		return false;
	s->told = now - s->opened_ns < STARTING_NS;
	if (!xen_saver_runs(s->domid))
		return false;
	s->seen_ns = now;
	s->told = true;
	return true;
}

bool xen_saver_gone(struct xen_saver *s, uint64_t for_ns)
{
	uint64_t now = ft_now_ns();

	if (now - s->look_ns < LOOK_NS)
		return false;
	s->look_ns = now;
	if (xen_saver_runs(s->domid))
		s->seen_ns = now;
	return now - s->seen_ns >= for_ns;
}

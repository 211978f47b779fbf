// SPDX-License-Identifier: GPL-3.0-or-later
/* tracker_map.c - where and how a process maps the RAM file: /proc/PID/maps and smaps. */
#include "checkpoint/track.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

struct map_line {
	uint64_t start, end, offset, inode;
	unsigned major, minor;
	char perms[5];
};

static bool parse_map_line(const char *line, struct map_line *m)
{
	return sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64, &m->start, &m->end, m->perms,
		      &m->offset, &m->major, &m->minor, &m->inode) == 7;
}

static FILE *open_proc(pid_t pid, const char *file)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
	return fopen(path, "re");
}

/* The file is told by device and inode: its name may mean another file where the process lives. */
static bool is_map_of(const struct map_line *m, const struct stat *st)
{
	return m->inode == st->st_ino && m->major == major(st->st_dev) && m->minor == minor(st->st_dev);
}

/* The extents of the file in the order of the process's addresses, joined where both run on. */
struct extent {
	struct map_line at;
	unsigned nr;
};

static void extent_add(struct extent *x, const struct map_line *m)
{
	bool runs_on = x->nr && x->at.end == m->start && x->at.offset + (m->start - x->at.start) == m->offset &&
		       x->at.perms[3] == m->perms[3];

	if (runs_on) {
		x->at.end = m->end;
		return;
	}
	if (!x->nr++)
		x->at = *m;
}

int ft_track_find_mapping(pid_t pid, const char *path, uint64_t nr_pages, uint64_t *addr)
{
	struct extent x = { .nr = 0 };
	struct map_line m;
	struct stat st;
	char *line = NULL;
	size_t size = 0;
	FILE *f;

	if (stat(path, &st))
		return -errno;
	f = open_proc(pid, "maps");
	if (!f)
		return errno == ENOENT ? -ESRCH : -errno;
	while (getline(&line, &size, f) > 0)
		if (parse_map_line(line, &m) && is_map_of(&m, &st))
			extent_add(&x, &m);
	free(line);
	fclose(f);
	if (x.nr > 1)
		return -ENOTUNIQ;
	if (!x.nr || x.at.perms[3] != 's' || x.at.offset || x.at.end - x.at.start != nr_pages << FT_PAGE_SHIFT)
		return -ENOENT;
	*addr = x.at.start;
	return 0;
}

/* One line below a mapping's head: "Name: value kB", or "VmFlags: rd wr sh ...". */
static void learn_fact(const char *line, struct ft_map_facts *facts)
{
	unsigned long kb;

	if (sscanf(line, "KernelPageSize: %lu kB", &kb) == 1)
		facts->page_kb = (unsigned)kb > facts->page_kb ? (unsigned)kb : facts->page_kb;
	else if (sscanf(line, "ShmemPmdMapped: %lu kB", &kb) == 1 || sscanf(line, "FilePmdMapped: %lu kB", &kb) == 1 ||
		 sscanf(line, "THPeligible: %lu", &kb) == 1)
		facts->huge |= kb > 0;
	else if (!strncmp(line, "VmFlags:", 8))
		facts->uffd_wp |= strstr(line, " uw") != NULL;
}

int ft_map_facts(const struct ft_track_target *t, struct ft_map_facts *out)
{
	uint64_t end = t->addr + (t->nr_pages << FT_PAGE_SHIFT), covered = 0;
	bool ours = false;
	char *line = NULL;
	size_t size = 0;
	struct map_line m;
	FILE *f;

	*out = (struct ft_map_facts){ .page_kb = 0 };
	f = open_proc(t->pid, "smaps");
	if (!f)
		return errno == ENOENT ? -ESRCH : -errno;
	while (getline(&line, &size, f) > 0) {
		if (parse_map_line(line, &m)) {
			ours = m.start >= t->addr && m.end <= end;
			covered += ours ? m.end - m.start : 0;
			if (m.start >= end)
				break;
		} else if (ours) {
			learn_fact(line, out);
		}
	}
	free(line);
	fclose(f);
	if (covered != t->nr_pages << FT_PAGE_SHIFT)
		return -ENOENT;
	return 0;
}

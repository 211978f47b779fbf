// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * protect.h - ft-protect's parts put together: libev, TLS, QEMU, netbuf and the guard behind the ops of
 * ft_primary. Used by main_ft-protect.c only.
 */
#ifndef FT_REPLICATOR_PROTECT_H
#define FT_REPLICATOR_PROTECT_H

#include "ft/attach.h"
#include "ft/control.h"
#include "ft/guard.h"
#include "ft/heartbeat.h"
#include "ft/link.h"
#include "ft/netbuf.h"
#include "ft/primary.h"
#include "facts.h"
#include <ev.h>

struct protect {
	/* what is asked for */
	const char *guest, *peer;
	struct ft_policy policy;
	struct ft_spec spec;
	struct ft_attach attach;
	char spec_text[FT_SPEC_TEXT_MAX];
	char facts[FT_FACTS_MAX];
	struct ft_record record;        /* the durable one, before we began */
	char address[256];              /* of the peer: host part */

	/* parts, in the order in which they are made */
	struct ev_loop *loop;
	int lock_fd;
	struct ft_vm *vm;
	struct ft_netbuf *netbuf;       /* NULL: a guest without network */
	struct ft_mirror *mirror;       /* NULL: a guest without disks */
	struct ft_guard *guard;
	int owner_fd;                   /* the gate's socket that a surviving guard kept, until netbuf has it */
	struct ft_staging *staging;
	struct ft_encoder *encoder;
	struct ft_primary *primary;
	struct ft_control *control;
	struct ft_link *link;
	struct ft_link *dead_link;      /* closed inside one of its callbacks: freed by @reaper */
	struct ft_beat *beat;
	struct ft_beat_config beat_cfg;
	bool hushed;                    /* the peer may speak: nothing is released; the gate keeps its own */

	ev_timer timer, alive, display, reaper;
	ev_io vm_event, guard_event, mirror_event;
	ev_signal sigint, sigterm;
	bool live;                      /* a terminal: redraw a status line */
	bool ended;
	enum ft_primary_end end;
	bool stop_warned;               /* the next signal ends us, whatever stays shut */
	unsigned clamped_for_ms;        /* the peer's silence_ms for which it was said that heartbeats come faster */
};

/* Everything up to a running primary. On failure: FT_END_*, one line was logged, nothing was changed. */
int protect_open(struct protect *pr, const char *guest, const char *peer, const struct ft_policy *policy) FT_MUST_CHECK;
int protect_run(struct protect *pr);            /* until the end: FT_END_* */
void protect_close(struct protect *pr);
/* Name every obstacle, touch nothing: how many. */
int protect_check(struct protect *pr, const char *guest, const char *peer);

/* protect_status.c */
/* Why the guest stands still, or why no epoch can be taken of it. NULL: neither. */
const char *protect_trouble(const struct protect *pr);
json_t *protect_status_json(struct protect *pr);
void protect_status_line(struct protect *pr, char *buf, size_t size);
void protect_display_start(struct protect *pr);
/* A change of state: one log line, and the hook. */
void protect_changed(struct protect *pr, enum ft_primary_state from, enum ft_primary_state to, const char *why);

#endif

// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * xen.h - internal: what the files of the Xen backend share.
 *
 * Only calls that Xen 4.17 and 4.20 have in common are used, so one source serves both.
 */
#ifndef FT_CHECKPOINT_XEN_H
#define FT_CHECKPOINT_XEN_H

#include "checkpoint/obstacles.h"
#include "checkpoint/xen_pages.h"
#include "ft/hv.h"

#include <xenctrl.h>
#include <xendevicemodel.h>
#include <xenforeignmemory.h>
#include <xenstore.h>

/* --- xen_dom.c: handles, domains, xenstore --- */

struct xen_dom {
	char guest[FT_NAME_MAX + 1];
	uint32_t domid;
	xc_interface *xc;
	struct xs_handle *xs;
	struct xs_handle *ends;         /* NULL, or told when any domain ends or suspends: apart, see xen_dom_watch */
	bool devices_touched;           /* xen_dom_drain: by its guest, or one came or went; the owner makes it false */
	xenforeignmemory_handle *mem;
};

int xen_dom_open(struct xen_dom *d, const char *guest, uint32_t domid) FT_MUST_CHECK;
void xen_dom_close(struct xen_dom *d);                                  /* takes half-opened ones */
/*
 * From here on xen_dom_fd is readable when any domain may have ended or suspended, or the devices of this one may be
 * others: drain, then look. On a connection of its own: libxenstore gives one with watches a thread that reads, and each
 * answer would have to come past it.
 */
int xen_dom_watch(struct xen_dom *d) FT_MUST_CHECK;
int xen_dom_fd(const struct xen_dom *d);
void xen_dom_drain(struct xen_dom *d);
int xen_dom_info(const struct xen_dom *d, xc_domaininfo_t *info);       /* -ESRCH: there is none */
void xen_dom_uuid(const xc_domaininfo_t *info, char uuid[37]);
/* The domain called @name. -ENOENT. */
int xen_dom_find(struct xs_handle *xs, const char *name, uint32_t *domid) FT_MUST_CHECK;
/* A node below /local/domain/DOMID (@dom) or at @fmt; NULL when there is none. The caller frees. */
char *xen_read(struct xs_handle *xs, const char *fmt, ...) FT_PRINTF(2, 3);
/* What is listed below @fmt, *@nr of them. NULL with errno; ENOENT: there is no such node. The caller frees. */
char **xen_list(struct xs_handle *xs, unsigned *nr, const char *fmt, ...) FT_PRINTF(3, 4);
int xen_write(struct xs_handle *xs, const char *value, const char *fmt, ...) FT_PRINTF(3, 4) FT_MUST_CHECK;
/* Of its memory, as its toolstack has it: "target", "static-max", ... 0: not there. */
uint64_t xen_dom_kb(const struct xen_dom *d, const char *node);
/* xen_find.c: why a PV domain is not protected, as Xen has it. */
void xen_pv_check(const struct xen_dom *d, struct ft_obstacles *o);
#define XEN_EMULATED "-emu"             /* how the name of an emulated interface's tap ends */
int xen_dom_nics(const struct xen_dom *d, struct ft_attach *at) FT_MUST_CHECK;
/* *@sum is another when the domain has got or lost a device of any kind. */
int xen_dom_devices(const struct xen_dom *d, uint64_t *sum) FT_MUST_CHECK;

static inline bool xen_is_shut_down(const xc_domaininfo_t *info, unsigned reason)
{
	return info->flags & XEN_DOMINF_shutdown &&
	       (info->flags >> XEN_DOMINF_shutdownshift & XEN_DOMINF_shutdownmask) == reason;
}

/* Frames that belong to the domain's own connections (xenstore, console): each host's are its own, and not replicated.
 */
struct xen_specials {
	uint64_t store, console;
};
int xen_dom_specials(const struct xen_dom *d, struct xen_specials *out) FT_MUST_CHECK;

/* --- xen_tool.c: the toolstack does what is not urgent --- */

/* Run `xl ARG...` (NULL at the end). 0, -ETIMEDOUT, or -EIO: logged with the last thing it said. */
int xen_xl(const char *guest, unsigned timeout_s, const char *const *arg) FT_MUST_CHECK;
/* The same; @turn is called now and then while it runs. */
int xen_xl_meanwhile(const char *guest, unsigned timeout_s, const char *const *arg, void (*turn)(void *ctx), void *ctx)
	FT_MUST_CHECK;
/*
 * @job in a process of its own: libxenstore waits for xenstored without an end. @job opens its own connection, for the rest
 * of one that was given up would be read by the next. -EIO: it has failed; -ETIMEDOUT.
 */
int xen_apart(unsigned timeout_s, int (*job)(void *ctx), void *ctx) FT_MUST_CHECK;
/* Dead at once, then cleaned up. Idempotent. */
int xen_destroy(const struct xen_dom *d) FT_MUST_CHECK;

/* --- xen_disk.c: vbds whose backing is a disk of ft --- */

/* Has the domain exactly these? */
void xen_disks_check(const struct xen_dom *d, const struct ft_spec *spec, struct ft_obstacles *o);
/* The line of an xl config that gives them to a replica; like snprintf. */
#define XEN_DISKS_CONFIG_MAX (64 + FT_DISKS_MAX * (96 + FT_NAME_MAX))
int xen_disks_config(const struct ft_spec *spec, char *buf, size_t size);
/* Is what xl starts for them there? Logged. */
int xen_disks_check_script(const struct ft_spec *spec) FT_MUST_CHECK;
/* A replica's: parked, and a device each; then the guest's, from here on. */
int xen_disks_serve(struct ft_attach *at) FT_MUST_CHECK;
int xen_disks_activate(const struct ft_attach *at) FT_MUST_CHECK;
/* Of a suspended domain: wait until its back ends have nothing more to do, for a tenth of a second at most. */
struct xen_disks {
	unsigned nr;
	int fd[FT_DISKS_MAX];
};
void xen_disks_open(const struct ft_attach *at, struct xen_disks *out);
void xen_disks_settle(const struct xen_disks *d);
void xen_disks_close(struct xen_disks *d);

/*
 * --- xen_suspend.c: a domain is asked to suspend, and is told that it was not moved; one whose kernel has no Xen
 * drivers is stopped without being asked, and never knows ---
 */
bool xen_has_drivers(const struct xen_dom *d);

#define XEN_SUSPEND_NS (30 * FT_S_NS)   /* from the request until it stands still, at most: a Linux gives up after 20 s */

struct xen_suspend {
	struct xen_dom *dom;            /* borrowed; to ask a guest, it needs xen_dom_watch */
	const struct ft_vm *vm;         /* borrowed; likewise: who is told of a long wait */
	bool apart;                     /* no word with xenstore takes longer than two seconds: a guard's */
	bool late;                      /* asked, and then not waited for any longer: it may suspend yet */
};

/* -ETIMEDOUT; -ESRCH: gone; -ESHUTDOWN: ended otherwise; -EBUSY: somebody else holds or ends it. Logged, but for the
 * last three. */
int xen_suspend_begin(struct xen_suspend *s) FT_MUST_CHECK;
/* Let it run on. -ECANCELED: somebody has; -ESRCH: gone. Else logged. Of several that call it at once only one does it. */
int xen_suspend_end(struct xen_suspend *s) FT_MUST_CHECK;
/* 0: the guest had not taken the request, and it stands no more. Else it may have, or there was none. */
int xen_suspend_take_back(struct xen_suspend *s) FT_MUST_CHECK;
/* Before nobody is there any more to let it run on: a late suspend is waited for, some seconds, and ended. */
void xen_suspend_late(struct xen_suspend *s);

/* --- xen_state.c: all of a domain but its memory --- */

struct xen_state_buf {                  /* kept from epoch to epoch */
	uint8_t *context;
	uint32_t size;
};
int xen_state_init(const struct xen_dom *d, struct xen_state_buf *b) FT_MUST_CHECK;
int xen_state_save(const struct xen_dom *d, struct xen_state_buf *b, struct ft_blob *out) FT_MUST_CHECK;
/* @state comes from the peer. Nothing is changed when it does not fit. */
int xen_state_load(const struct xen_dom *d, const struct ft_blob *state) FT_MUST_CHECK;
/* What must be equal on both sides, once a session; the processor is behind it, see xen_cpu.c. */
int xen_params_save(const struct xen_dom *d, struct ft_blob *out) FT_MUST_CHECK;
int xen_params_check(const struct xen_dom *d, const struct ft_blob *theirs) FT_MUST_CHECK;
/* After the check. */
struct ft_blob xen_params_cpu(const struct ft_blob *theirs);            /* borrows */
/* Those that the firmware of an HVM guest has set, which has not run here. After the check. */
int xen_params_take(const struct xen_dom *d, const struct ft_blob *theirs) FT_MUST_CHECK;
/* Has it run? */
bool xen_params_booted(const struct xen_dom *d);

/* --- xen_cpu.c: what a guest sees of its processor --- */

/* The caller frees @out. */
int xen_cpu_save(const struct xen_dom *d, struct ft_blob *out) FT_MUST_CHECK;
/*
 * The domain, which has not run yet, shows @theirs to its guest from here on. -ENOEXEC: it is none, or this host's
 * processor or Xen cannot show it. @theirs comes from the peer.
 */
int xen_cpu_take(const struct xen_dom *d, const struct ft_blob *theirs) FT_MUST_CHECK;

/* --- xen_memory.c --- */

/*
 * The frames of @map in one piece of address space; frames without memory, and @specials, read as zeros and are never
 * the guest's. *@nr_missing: how many have no memory (NULL: not of interest).
 */
int xen_map(const struct xen_dom *d, const struct xen_pages *map, const struct xen_specials *specials, bool writable,
	    uint8_t **out, uint64_t *nr_missing) FT_MUST_CHECK;
/* The same, to be read, and again when frames come and go: @there says which pages have memory, @changed (NULL: whatever)
 * gets those of which that has changed. */
int xen_map_moving(const struct xen_dom *d, const struct xen_pages *map, const struct xen_specials *specials, uint8_t **out,
		   struct ft_bitmap *there, struct ft_bitmap *changed) FT_MUST_CHECK;
void xen_unmap(uint8_t *ram, const struct xen_pages *map);
/* Find the frames that have memory, or had until a balloon took it. */
int xen_find_pages(const struct xen_dom *d, struct xen_pages *out) FT_MUST_CHECK;
/* Give memory to those of @map that have none. */
int xen_populate(const struct xen_dom *d, const struct xen_pages *map) FT_MUST_CHECK;

/* --- xen_log.c: which pages the domain writes. Others may read that log, too --- */

#define XEN_SPECIALS_MAX 64u            /* frames that no guest uses as memory, below 4 GiB */

struct xen_log_bits {                   /* one a frame, as Xen gives them */
	uint64_t *bit;
	xc_hypercall_buffer_t buf;
	unsigned nr_pages;
};

struct xen_log {
	const struct xen_dom *dom;      /* borrowed */
	xendevicemodel_handle *dm;
	uint64_t nr_gfns, nr_clean;     /* frames that there may be; those whose bits a reading takes */
	uint64_t canary_gfn;
	bool canary_stays;              /* it is not among the first @nr_clean */
	bool canary;                    /* it is marked */
	bool on;
	struct xen_log_bits taken, seen;        /* of the last xen_log_take; of the last look */
	bool shared;                    /* others read it: hands off */
	bool was_off;                   /* ... and then: as it was found last, since: */
	uint64_t since_ns, look_ns;
};

int xen_log_open(struct xen_log *l, const struct xen_dom *d, const struct xen_pages *map) FT_MUST_CHECK;
/* 0 also when others read it: then l->shared. */
int xen_log_start(struct xen_log *l) FT_MUST_CHECK;
/* Now and then, before a pause: -EBUSY: others read it. */
int xen_log_look(struct xen_log *l) FT_MUST_CHECK;
/* l->taken: what was written since. -EBUSY: others read it; -EIO: nobody knows what was written. Both are logged. */
int xen_log_take(struct xen_log *l, bool suspended) FT_MUST_CHECK;
/* While it is shared, as often as you like. True: it is no more, and logs again; all may have been written. */
bool xen_log_ours_again(struct xen_log *l);
/* Does xl save or migrate the domain @domid, or (0) any? A saver in its long first pass does not touch the log. */
bool xen_saver_runs(uint32_t domid);
/* It is on, and nobody else has read it to this moment. */
bool xen_log_is_ours(struct xen_log *l);
void xen_log_stop(struct xen_log *l);           /* unless it is somebody else's */
void xen_log_close(struct xen_log *l);          /* takes half-opened ones */

#endif

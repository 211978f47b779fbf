// SPDX-License-Identifier: GPL-3.0-or-later
/* xen_vm.c - the running domain on the primary: what an epoch needs of it. See ft/hv.h and checkpoint/xen.h. */
#include "checkpoint/xen_model.h"
#include "checkpoint/xen_parts.h"
#include "ft/diskserver.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>
#include <xen/sched.h>

#define EVENTS_MAX 4u
#define DEVICES_LOOK_NS (100 * FT_MS_NS)        /* at most so often: a guest writes there, too */
#define LOG_SHARED "somebody else reads the log of written pages (is it being saved or migrated?): no epoch can be taken"
#define UNKNOWN_DEVICE "it has other devices than when protection began ('xl network-list', 'xl block-list'), of which nobody holds what \
they send: detach what was attached, or end ft-protect and start it again with a guest file that has them: no epoch can be taken"
/* A domain that is found suspended with this was left so by a dead ft-protect. */
#define MARK "/local/domain/%u/ft/protected"

struct xen_vm {
	struct ft_vm vm;
	struct ft_attach at;
	struct xen_dom dom;
	struct xen_suspend suspend;
	struct xen_disks disks;
	struct xen_pages map;
	struct xen_specials specials;
	struct xen_state_buf state;
	uint64_t tot_pages;             /* of the domain when it was mapped */
	uint64_t target_kb;             /* what its balloon was told then */
	int64_t reserve;                /* pages that it has beyond that when it has got there */
	bool moving;                    /* its balloon may be at work */
	bool read_running;              /* pages were read while it ran since: maybe of frames that had been given back */
	struct ft_bitmap there;         /* pages that had memory then */
	struct ft_bitmap moved;         /* came or went since: Xen does not log that, nor what is written to new ones */
	uint64_t shared_info;           /* the frame where the guest sees it: Xen writes there without logging it */
	uint8_t *ram;

	struct xen_log log;
	struct xen_model *model;        /* NULL: it has none */
	bool marked;
	bool paused;                    /* by us */
	bool taken;                     /* the dirty pages of this pause: nothing that counts was written since */
	uint64_t suspended_ns;          /* when it was seen to stand still */
	bool off, gone;
	bool foreign;                   /* told that somebody else holds it */
	uint64_t devices, devices_look_ns;      /* xen_dom_devices when it was opened; when they were looked at last */
	bool devices_differ;
	enum ft_vm_event event[EVENTS_MAX];
	unsigned nr_events;
};

static struct xen_vm *xen_of(struct ft_vm *vm)
{
	return ft_container_of(vm, struct xen_vm, vm);
}

/* --- events --- */

static void queue_event(struct xen_vm *v, enum ft_vm_event ev)
{
	for (unsigned i = 0; i < v->nr_events; i++)
		if (v->event[i] == ev)
			return;
	v->event[v->nr_events++] = ev;
}

static void ended(struct xen_vm *v, const char *how)
{
	if (v->off)
		return;
	v->vm.ended = how;
	v->off = true;
	queue_event(v, FT_VM_SHUTDOWN);
}

static void note_shutdown(struct xen_vm *v, unsigned reason)
{
	switch (reason) {
	case SHUTDOWN_suspend:
		if (v->paused)
			return;
		if (v->suspend.late)
			ft_ignore(xen_suspend_end(&v->suspend));        /* logged; ours, after we gave up waiting */
		else if (!v->foreign)
			queue_event(v, FT_VM_PAUSED_BY_OTHER);
		v->foreign = true;
		return;
	case SHUTDOWN_reboot:
		ended(v, "the guest reboots: under Xen that is a new domain, and this one is over");
		return;
	case SHUTDOWN_crash:
		ended(v, "the guest has crashed by itself (its console says why)");
		return;
	default:
		ended(v, NULL);
	}
}

/* A domain that is destroyed without having ended by itself is a crash of this host's making: the backup goes on. */
static void look(struct xen_vm *v)
{
	xc_domaininfo_t info;
	int rc = xen_dom_info(&v->dom, &info);

	if (rc == -ESRCH && !v->gone) {
		v->gone = true;
		if (v->foreign || v->log.shared)
			ended(v, "its domain is gone while somebody else had it: it was saved or migrated, and lives there");
		else if (!v->off)
			queue_event(v, FT_VM_GONE);
	}
	if (rc)
		return;
	if (info.flags & XEN_DOMINF_shutdown)
		note_shutdown(v, info.flags >> XEN_DOMINF_shutdownshift & XEN_DOMINF_shutdownmask);
	else
		v->foreign = false;
}

/* A machine without its devices is a crash, of which nobody has told the guest. */
static int model_lost(struct xen_vm *v, int rc)
{
	if (rc == -EPIPE) {
		ft_err("%s: its device model is gone: the domain is destroyed", v->at.guest);
		ft_ignore(xen_destroy(&v->dom));
		look(v);
	}
	return rc;
}

/* A guest that waits for a device that is gone does not answer when it is asked to suspend. */
static int model_there(struct xen_vm *v)
{
	return v->model && !v->gone ? model_lost(v, xen_model_alive(v->model)) : 0;
}

static void say_contended(struct xen_vm *v)
{
	v->vm.contended = v->log.shared ? LOG_SHARED : v->devices_differ ? UNKNOWN_DEVICE : NULL;
}

/*
 * What a device sends that was attached since is not held, and it would be missing after a takeover. It cannot be shut from
 * here; nothing more is released until it is gone.
 */
static int look_at_devices(struct xen_vm *v)
{
	uint64_t now = ft_now_ns(), sum;
	bool differ;

	if (!v->dom.devices_touched || now - v->devices_look_ns < DEVICES_LOOK_NS)
		return v->devices_differ ? -EBUSY : 0;
	v->devices_look_ns = now;
	if (xen_dom_devices(&v->dom, &sum))
		return 0;               /* a xenstored that does not answer, or a domain that goes: seen elsewhere */
	v->dom.devices_touched = false;
	differ = sum != v->devices;
	if (differ && !v->devices_differ)
		ft_err("%s: %s", v->at.guest, UNKNOWN_DEVICE);
	if (!differ && v->devices_differ)
		ft_info("%s: it has the devices again that it had when protection began", v->at.guest);
	v->devices_differ = differ;
	return differ ? -EBUSY : 0;
}

/* Who ends a migration in order has the device model log no more; and to be told so twice kills QEMU 7.2. */
static void take_log_again(struct xen_vm *v)
{
	if (!xen_log_ours_again(&v->log))
		return;
	say_contended(v);
	if (v->model && model_lost(v, xen_model_log_writes(v->model, true)) && !v->gone)
		v->vm.contended = LOG_SHARED;
}

static void look_at_contention(struct xen_vm *v)
{
	if (v->log.shared) {
		take_log_again(v);
		return;
	}
	ft_ignore(look_at_devices(v));
	say_contended(v);
}

static enum ft_vm_event xen_next_event(struct ft_vm *vm)
{
	struct xen_vm *v = xen_of(vm);
	enum ft_vm_event ev;

	if (!v->nr_events) {
		xen_dom_drain(&v->dom);
		look(v);
		if (!v->foreign && !v->gone && !v->off)
			look_at_contention(v);
	}
	if (!v->nr_events)
		return FT_VM_NONE;
	ev = v->event[0];
	memmove(v->event, v->event + 1, --v->nr_events * sizeof(v->event[0]));
	return ev;
}

/* --- pause and resume --- */

/*
 * Frames that came since would still be zeros here, and those that went would still be theirs. Our mapping keeps what its
 * balloon gives back from being freed, so the number of its pages alone does not tell: from a new target on until it has
 * got there, all is mapped anew in each epoch. A full copy reads while the guest runs: what it has read of a frame that had
 * gone and come back was the old one, and the log says nothing of that, so it reads all of it again.
 */
static int map_again(struct xen_vm *v)
{
	uint64_t target_kb = xen_dom_kb(&v->dom, "target"), nr_moved = ft_bitmap_count(&v->moved);
	xc_domaininfo_t info;
	bool told;
	int rc = xen_dom_info(&v->dom, &info);

	if (rc)
		return rc;
	v->shared_info = info.shared_info_frame;
	told = info.tot_pages != v->tot_pages || target_kb != v->target_kb;
	if (!told && !v->moving)
		return 0;
	rc = xen_map_moving(&v->dom, &v->map, &v->specials, &v->ram, &v->there, &v->moved);
	if (!rc)
		rc = xen_dom_info(&v->dom, &info);
	if (rc)
		return rc;
	nr_moved = ft_bitmap_count(&v->moved) - nr_moved;
	v->moving = nr_moved || target_kb != v->target_kb || (int64_t)info.tot_pages != (int64_t)(target_kb / 4) + v->reserve;
	if (nr_moved)
		ft_info("%s: its memory has changed: %" PRIu64 " of its pages came or went, it has %" PRIu64, v->at.guest,
			nr_moved, (uint64_t)info.tot_pages);
	if (told && (!v->paused || v->read_running))
		ft_bitmap_fill(&v->moved);
	v->tot_pages = info.tot_pages;
	v->target_kb = target_kb;
	return 0;
}

static int stop_model(struct xen_vm *v)
{
	return v->model ? model_lost(v, xen_model_stop(v->model)) : 0;
}

static int xen_pause(struct ft_vm *vm)
{
	struct xen_vm *v = xen_of(vm);
	int rc;

	if (v->paused)
		return 0;
	rc = xen_log_look(&v->log) ?: look_at_devices(v);
	say_contended(v);
	if (rc)
		return rc;
	rc = model_there(v);
	if (rc)
		return rc;
	rc = xen_suspend_begin(&v->suspend);
	if (rc == -EBUSY && !v->foreign)
		queue_event(v, FT_VM_PAUSED_BY_OTHER);
	v->foreign = rc == -EBUSY;
	if (rc) {
		look(v);
		return model_there(v) ?: rc;
	}
	v->paused = true;
	v->taken = false;
	v->suspended_ns = ft_now_ns();
	xen_disks_settle(&v->disks);
	rc = stop_model(v);
	return rc ? rc : map_again(v);
}

static int xen_resume(struct ft_vm *vm)
{
	struct xen_vm *v = xen_of(vm);
	xc_domaininfo_t info;
	int rc, voided = 0;

	if (!v->paused)
		return 0;
	v->paused = false;
	rc = xen_dom_info(&v->dom, &info);
	if (!rc && !(info.flags & XEN_DOMINF_shutdown)) {
		ft_warn("%s: somebody else let the guest run on while it was suspended", v->at.guest);
		return -ECANCELED;
	}
	if (!rc && v->model)
		rc = model_lost(v, xen_model_cont(v->model));
	if (rc == -ECANCELED)
		voided = rc;
	if (!rc || voided)
		rc = xen_suspend_end(&v->suspend) ?: voided;
	v->paused = rc && rc != -ESRCH && rc != -ECANCELED;
	ft_debug("%s: was suspended for %.1f ms", v->at.guest, (double)(ft_now_ns() - v->suspended_ns) / 1e6);
	return rc;
}

/* --- state --- */

/* The domain's is one hypercall, which gains nothing by being begun before. */
static int xen_state_begin(struct ft_vm *vm)
{
	struct xen_vm *v = xen_of(vm);

	return v->model ? model_lost(v, xen_model_save_begin(v->model)) : 0;
}

static int add_model_state(struct xen_vm *v, struct ft_blob *out)
{
	struct ft_blob domain = *out, model;
	int rc = model_lost(v, xen_model_save_end(v->model, &model));

	*out = (struct ft_blob){ 0 };
	v->taken = false;               /* what it has written meanwhile */
	if (!rc)
		rc = xen_parts_join(&domain, &model, out);
	ft_blob_free(&model);
	ft_blob_free(&domain);
	return rc;
}

static int xen_state_end(struct ft_vm *vm, struct ft_blob *out)
{
	struct xen_vm *v = xen_of(vm);

	int rc = xen_state_save(&v->dom, &v->state, out);

	return rc || !v->model ? rc : add_model_state(v, out);
}

static int xen_firmware(struct ft_vm *vm, struct ft_blob *out)
{
	return xen_params_save(&xen_of(vm)->dom, out);
}

/* --- tracking --- */

static int xen_track(struct ft_vm *vm)
{
	struct xen_vm *v = xen_of(vm);
	int rc = xen_write(v->dom.xs, "1", MARK, v->dom.domid);

	v->marked = !rc;
	if (!rc)
		rc = xen_log_start(&v->log);
	if (!rc && v->model)
		rc = xen_model_log_writes(v->model, true);
	say_contended(v);
	return rc;
}

static int xen_take_dirty(struct ft_vm *vm, struct ft_bitmap *dirty)
{
	struct xen_vm *v = xen_of(vm);
	uint64_t page;
	int rc;

	if (v->paused && v->taken)
		return 0;
	rc = v->paused ? 0 : map_again(v);
	if (rc)
		return rc;
	rc = xen_log_take(&v->log, v->paused);
	if (rc) {
		ft_bitmap_fill(dirty);
		say_contended(v);
		return rc;
	}
	v->taken = v->paused;
	v->read_running = !v->paused;
	ft_bitmap_or(dirty, &v->moved);
	ft_bitmap_zero(&v->moved);
	xen_pages_fold(&v->map, v->log.taken.bit, v->log.nr_gfns, dirty);
	if (v->paused && xen_pages_index(&v->map, v->shared_info, &page))
		ft_bitmap_set(dirty, page);
	return 0;
}

static uint64_t xen_cpu_time_ns(struct ft_vm *vm)
{
	struct xen_vm *v = xen_of(vm);
	uint64_t busiest = 0;
	xc_domaininfo_t info;
	xc_vcpuinfo_t cpu;

	if (xen_dom_info(&v->dom, &info))
		return 0;
	if (!info.max_vcpu_id)
		return info.cpu_time;
	for (unsigned i = 0; i <= info.max_vcpu_id; i++)
		if (!xc_vcpu_getinfo(v->dom.xc, v->dom.domid, i, &cpu) && cpu.cpu_time > busiest)
			busiest = cpu.cpu_time;
	return busiest;
}

/* --- ending --- */

static int xen_vm_destroy(struct ft_vm *vm)
{
	struct xen_vm *v = xen_of(vm);
	int rc = xen_destroy(&v->dom);

	v->gone = true;
	ft_disk_end_here(&v->at);          /* before this host's store opens the images */
	return rc ? rc : ft_attach_remove(v->at.guest);
}

/* The toolstack's own watcher ended when it saw the first suspend, so nobody else clears away what is over. */
static void release_domain(struct xen_vm *v)
{
	if (v->paused)
		ft_ignore(xen_resume(&v->vm));          /* logged */
	xen_suspend_late(&v->suspend);
	if (v->model && xen_log_is_ours(&v->log))
		ft_ignore(xen_model_log_writes(v->model, false));       /* logged */
	xen_log_stop(&v->log);
	if (v->marked) {
		char path[64];

		snprintf(path, sizeof(path), MARK, v->dom.domid);
		xs_rm(v->dom.xs, XBT_NULL, path);
	}
	if (v->off && !xen_destroy(&v->dom)) {
		ft_disk_end_here(&v->at);
		ft_ignore(ft_attach_remove(v->at.guest));
	}
}

static void xen_close(struct ft_vm *vm)
{
	struct xen_vm *v = xen_of(vm);

	if (v->dom.mem && !v->gone)
		release_domain(v);
	xen_unmap(v->ram, &v->map);
	xen_log_close(&v->log);
	ft_bitmap_free(&v->there);
	ft_bitmap_free(&v->moved);
	free(v->state.context);
	xen_disks_close(&v->disks);
	xen_model_close(v->model);
	xen_dom_close(&v->dom);
	free(v);
}

static const struct ft_hv_ops xen_vm_ops = {
	.track = xen_track,
	.pause = xen_pause,
	.state_begin = xen_state_begin,
	.state_end = xen_state_end,
	.take_dirty = xen_take_dirty,
	.resume = xen_resume,
	.firmware = xen_firmware,
	.next_event = xen_next_event,
	.cpu_time_ns = xen_cpu_time_ns,
	.destroy = xen_vm_destroy,
	.close = xen_close,
};

/* --- opening --- */

/*
 * An ft-protect that died together with its guard left it so. Or it is being saved: then it is let be, and who saved it is
 * noticed when it is gone.
 */
static int end_old_suspend(struct xen_vm *v)
{
	char *mark = xen_read(v->dom.xs, MARK, v->dom.domid);
	xc_domaininfo_t info;
	int rc = xen_dom_info(&v->dom, &info);
	bool stands = !rc && mark && xen_is_shut_down(&info, SHUTDOWN_suspend);

	v->foreign = stands && xen_saver_runs(v->dom.domid);
	if (stands && !v->foreign) {
		char why[400];

		ft_info("%s: was left suspended: it runs on", v->at.guest);
		if (xen_has_model(&v->dom) && xen_model_wake(&v->dom, why, sizeof(why)))
			ft_err("%s: %s", v->at.guest, why);
		rc = xen_suspend_end(&v->suspend);
		if (rc == -ECANCELED)           /* by its guard */
			rc = 0;
	}
	free(mark);
	return rc;
}

static int map_memory(struct xen_vm *v)
{
	xc_domaininfo_t info;
	int rc = xen_pages_parse(v->at.pages, &v->map);

	if (!rc)
		rc = xen_dom_specials(&v->dom, &v->specials);
	if (!rc)
		rc = xen_dom_info(&v->dom, &info);
	if (rc)
		return rc;
	v->tot_pages = info.tot_pages;
	v->target_kb = xen_dom_kb(&v->dom, "target");
	v->reserve = (int64_t)info.tot_pages - (int64_t)(v->target_kb / 4);
	v->vm.nr_pages = v->map.total;
	rc = ft_bitmap_init(&v->there, v->map.total);
	if (!rc)
		rc = ft_bitmap_init(&v->moved, v->map.total);
	if (!rc)
		rc = xen_map_moving(&v->dom, &v->map, &v->specials, &v->ram, &v->there, NULL);
	v->vm.ram = v->ram;
	return rc;
}

/* What was attached since the record was made, nobody would hold. */
static int same_devices(struct xen_vm *v)
{
	int rc = xen_dom_devices(&v->dom, &v->devices);

	if (rc || v->devices == v->at.devices)
		return rc;
	ft_err("%s: a device of it came or went while protection began: start ft-protect again", v->at.guest);
	return -EBUSY;
}

static int open_all(struct xen_vm *v)
{
	int rc = xen_dom_open(&v->dom, v->at.guest, v->at.domid);

	v->suspend.dom = &v->dom;
	v->suspend.vm = &v->vm;
	if (!rc)
		rc = end_old_suspend(v);
	if (!rc)
		rc = map_memory(v);
	if (!rc)
		rc = xen_log_open(&v->log, &v->dom, &v->map);
	if (!rc)
		rc = xen_state_init(&v->dom, &v->state);
	if (!rc && xen_has_model(&v->dom))
		rc = xen_model_open(&v->dom, &v->model);
	if (!rc)
		rc = xen_dom_watch(&v->dom);
	if (!rc)
		rc = same_devices(v);           /* from here on a change is told */
	v->vm.event_fd = rc ? -1 : xen_dom_fd(&v->dom);
	xen_disks_open(&v->at, &v->disks);
	return rc;
}

int ft_xen_open(const struct ft_attach *at, struct ft_vm **out)
{
	struct xen_vm *v = calloc(1, sizeof(*v));
	int rc;

	*out = NULL;
	if (!v)
		return -ENOMEM;
	*v = (struct xen_vm){
		.vm = { .ops = &xen_vm_ops,
			.backend = "xen",
			.accel = "hap",
			.tracker = "log-dirty",
			.event_fd = -1,
			.no_drill = true, .served_paused = true },
		.at = *at,
	};
	rc = open_all(v);
	if (rc) {
		xen_close(&v->vm);
		return rc;
	}
	*out = &v->vm;
	return 0;
}

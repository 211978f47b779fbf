// SPDX-License-Identifier: GPL-3.0-or-later
/* protect_status.c - what ft-protect says of itself: JSON for ft-ctl, a line for a terminal, lines for a log. */
#include "protect.h"

#include "hook.h"
#include <stdio.h>
#include <unistd.h>

static json_t *percentiles(const struct ft_samples *s, bool with_max)
{
	json_t *j = json_pack("{s:I, s:I}", "p50", (json_int_t)(ft_samples_percentile(s, 50) / 1000),
			      "p99", (json_int_t)(ft_samples_percentile(s, 99) / 1000));

	if (j && with_max)
		json_object_set_new(j, "max", json_integer((json_int_t)(s->max_ns / 1000)));
	return j;
}


static json_t *disk_json(const struct protect *pr, unsigned i)
{
	struct ft_mirror_status d;

	pr->mirror->ops->status(pr->mirror, i, &d);
	return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "image", pr->attach.disk[i].image, "bytes", (json_int_t)d.bytes,
			 "behind_bytes", (json_int_t)d.behind, "pending_writes", (json_int_t)d.pending,
			 "mirrored_bytes", (json_int_t)d.mirrored, "log_bytes", (json_int_t)d.log_bytes,
			 "copy_done", (json_int_t)d.copy_done * (json_int_t)FT_GRANULE,
			 "copy_total", (json_int_t)d.copy_total * (json_int_t)FT_GRANULE);
}

static json_t *disks_json(const struct protect *pr)
{
	json_t *list = json_array();

	for (unsigned i = 0; pr->mirror && i < pr->mirror->nr_disks; i++)
		json_array_append_new(list, disk_json(pr, i));
	return list;
}

/* Of all disks, while one is being compared. */
static bool copying(const struct protect *pr, double *done, double *total)
{
	*done = *total = 0;
	for (unsigned i = 0; pr->mirror && i < pr->mirror->nr_disks; i++) {
		struct ft_mirror_status d;

		pr->mirror->ops->status(pr->mirror, i, &d);
		*done += (double)d.copy_done / 16;
		*total += (double)d.copy_total / 16;
	}
	return *done < *total;
}

const char *protect_trouble(const struct protect *pr)
{
	return pr->vm->trouble ? pr->vm->trouble : pr->vm->contended;
}

json_t *protect_status_json(struct protect *pr)
{
	struct ft_netbuf_stats nb = { .held = "nothing", .dropped = "nothing", .mechanism = "none" };
	struct ft_link_stats link = { 0 };
	struct ft_codec_stats codec = { 0 };
	struct ft_primary_status s;
	json_t *j;

	ft_primary_get_status(pr->primary, &s);
	ft_encoder_get_stats(pr->encoder, &codec);
	if (pr->netbuf)
		ft_netbuf_get_stats(pr->netbuf, &nb);
	if (pr->link)
		ft_link_get_stats(pr->link, &link);
	j = json_pack("{s:b, s:s, s:s, s:s, s:I, s:s, s:s, s:s, s:s, s:I, s:I}",
		      "ok", 1, "guest", pr->guest, "role", "primary", "state", ft_primary_state_name(s.state),
		      "generation", (json_int_t)s.generation, "peer", pr->peer, "backend", pr->vm->backend,
		      "accel", pr->vm->accel, "tracker", pr->vm->tracker,
		      "epoch", (json_int_t)s.epoch, "acked_epoch", (json_int_t)s.acked_epoch);
	if (!j)
		return NULL;
	json_object_set_new(j, "interval_ms", json_real((double)s.interval_ns / 1e6));
	json_object_set_new(j, "pause_us", percentiles(s.pause, true));
	json_object_set_new(j, "ack_us", percentiles(s.ack, false));
	json_object_set_new(j, "dirty_pages", json_integer((json_int_t)s.dirty_pages));
	json_object_set_new(j, "bytes_dirty", json_integer((json_int_t)s.bytes_dirty));
	json_object_set_new(j, "bytes_sent", json_integer((json_int_t)codec.wire_bytes));
	json_object_set_new(j, "bytes_link", json_integer((json_int_t)link.bytes_sent));
	json_object_set_new(j, "held_packets", json_integer((json_int_t)nb.held_packets));
	json_object_set_new(j, "released_packets", json_integer((json_int_t)nb.released_packets));
	json_object_set_new(j, "dropped_packets", json_integer((json_int_t)nb.dropped_packets));
	json_object_set_new(j, "in_flight", json_integer((json_int_t)s.in_flight));
	json_object_set_new(j, "staging_bytes", json_integer((json_int_t)ft_staging_used(pr->staging)));
	json_object_set_new(j, "holds", json_string(nb.held));
	json_object_set_new(j, "drops", json_string(nb.dropped));
	json_object_set_new(j, "output", json_string(s.breached ? "shut (breach)" : nb.mechanism));
	json_object_set_new(j, "heartbeat_rtt_us", json_integer(pr->beat ? (json_int_t)ft_beat_rtt_us(pr->beat) : 0));
	json_object_set_new(j, "sync_pages", json_integer((json_int_t)s.sync_done));
	json_object_set_new(j, "sync_total", json_integer((json_int_t)s.sync_total));
	json_object_set_new(j, "disks", disks_json(pr));
	json_object_set_new(j, "trouble", protect_trouble(pr) ? json_string(protect_trouble(pr)) : json_null());
	return j;
}

void protect_status_line(struct protect *pr, char *buf, size_t size)
{
	static uint64_t last_epoch, last_wire, last_ns;         /* of this process's one display; first called as it starts */
	struct ft_netbuf_stats nb = { 0 };
	struct ft_codec_stats codec = { 0 };
	struct ft_primary_status s;
	uint64_t now = ft_now_ns();
	double done, total, dt = last_ns ? (double)(now - last_ns) / 1e9 : 1.0;

	ft_primary_get_status(pr->primary, &s);
	ft_encoder_get_stats(pr->encoder, &codec);
	if (pr->netbuf)
		ft_netbuf_get_stats(pr->netbuf, &nb);
	if (protect_trouble(pr))
		snprintf(buf, size, "%s %s  %s%s", pr->guest, ft_primary_state_name(s.state),
			 pr->vm->trouble ? "the guest stands still: " : "", protect_trouble(pr));
	else if (s.state == FT_PRIMARY_SYNCING && copying(pr, &done, &total))
		snprintf(buf, size, "%s SYNCING disks %3.0f%%  %.0f of %.0f MB  wire %.1f MB/s", pr->guest, 100.0 * done / total,
			 done, total, (double)(codec.wire_bytes - last_wire) / dt / 1e6);
	else if (s.state == FT_PRIMARY_SYNCING)
		snprintf(buf, size, "%s SYNCING %3.0f%%  %.0f of %.0f MB  wire %.1f MB/s", pr->guest,
			 s.sync_total ? 100.0 * (double)s.sync_done / (double)s.sync_total : 0.0,
			 (double)s.sync_done / 256, (double)s.sync_total / 256, (double)(codec.wire_bytes - last_wire) / dt / 1e6);
	else
		snprintf(buf, size, "%s %s  %.0f epochs/s  pause %.1f ms  ack %.1f ms  dirty %llu pages  wire %.1f MB/s  "
			 "ratio %.1f  held %llu", pr->guest, ft_primary_state_name(s.state),
			 (double)(s.epoch - last_epoch) / dt, (double)ft_samples_percentile(s.pause, 50) / 1e6,
			 (double)ft_samples_percentile(s.ack, 50) / 1e6, (unsigned long long)s.dirty_pages,
			 (double)(codec.wire_bytes - last_wire) / dt / 1e6,
			 codec.wire_bytes ? (double)codec.raw_bytes / (double)codec.wire_bytes : 0.0,
			 (unsigned long long)nb.held_packets);
	last_epoch = s.epoch;
	last_wire = codec.wire_bytes;
	last_ns = now;
}

static void on_display(struct ev_loop *loop, ev_timer *w, int revents)
{
	struct protect *pr = w->data;
	char line[256];

	(void)loop, (void)revents;
	protect_status_line(pr, line, sizeof(line));
	if (pr->live)
		fprintf(stderr, "\r\033[K%s", line);
	else
		ft_info("%s", line);
}

void protect_display_start(struct protect *pr)
{
	const char *term = getenv("TERM");
	double every = 1.0;
	char line[256];         /* rates count from here */

	protect_status_line(pr, line, sizeof(line));
	pr->live = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
	if (!pr->live)
		every = 60.0;           /* a journal wants a sign of life, not a film */
	ev_timer_init(&pr->display, on_display, every, every);
	pr->display.data = pr;
	ev_timer_start(pr->loop, &pr->display);
}

void protect_changed(struct protect *pr, enum ft_primary_state from, enum ft_primary_state to, const char *why)
{
	if (pr->live)
		fprintf(stderr, "\r\033[K");
	ft_info("%s: %s -> %s: %s", pr->guest, ft_primary_state_name(from), ft_primary_state_name(to), why);
	ft_hook_run(pr->policy.hook, pr->guest, "primary", ft_primary_state_name(to), ft_primary_state_name(from), why);
}

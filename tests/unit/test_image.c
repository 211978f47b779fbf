// SPDX-License-Identifier: GPL-3.0-or-later
#include "ft/encode.h"
#include "ft/fake.h"
#include "ft/image.h"
#include "ft/wire.h"
#include "tests/test.h"

#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#define NR_PAGES 300u
#define STATE_MAX 4096u
#define EPOCHS 24u

/* --- the primary's half, recorded: a fake guest's epochs as records --- */

struct rec {
	uint32_t type;
	struct ft_blob body;
};

struct tape {                           /* one epoch */
	struct rec rec[64];
	unsigned nr;
	uint64_t number, base;
	uint32_t flags;
	uint64_t digest;                /* of the guest at that instant */
	uint8_t ram[16];                /* its first bytes */
};

struct rig {
	struct ft_fake_config cfg;
	struct ft_fake_guest *guest;
	struct ft_vm *vm;
	struct ft_staging *st;
	struct ft_encoder *en;
	struct ft_bitmap dirty;
	struct ft_replica *replica;
	struct ft_image *im;
	struct ft_image_config icfg;
	struct tape tape[EPOCHS + 1];   /* by number */
	struct tape *open;
};

static int record(void *ctx, uint32_t type, const void *body, size_t len)
{
	struct rig *r = ctx;
	struct rec *rec = &r->open->rec[r->open->nr++];

	CHECK(r->open->nr <= FT_ARRAY_LEN(r->open->rec));
	CHECK_OK(ft_wire_check(type, len, true));
	rec->type = type;
	return ft_blob_copy(&rec->body, body, len);
}

static void new_image(struct rig *r, size_t bound)
{
	ft_image_free(r->im);
	memset(r->replica->ram, 0xcc, (size_t)NR_PAGES * FT_PAGE_SIZE);
	r->icfg = (struct ft_image_config){
		.ram = r->replica->ram, .nr_pages = NR_PAGES, .staging_bound = bound, .spill_dir = ft_test_dir(),
		.state_max = STATE_MAX,
	};
	CHECK_OK(ft_image_new(&r->icfg, &r->im));
}

static void rig_init(struct rig *r)
{
	struct ft_encoder_config ecfg = { .nr_pages = NR_PAGES, .shadow = true, .emit = record, .ctx = r };

	*r = (struct rig){ .cfg = { .nr_pages = NR_PAGES, .seed = 7 } };
	CHECK_OK(ft_fake_guest_new(&r->cfg, &r->guest));
	CHECK_OK(ft_fake_attach(r->guest, &r->vm));
	CHECK_OK(ft_staging_new(0, &r->st));
	ecfg.staging = r->st;
	CHECK_OK(ft_encoder_new(&ecfg, &r->en));
	CHECK_OK(ft_bitmap_init(&r->dirty, NR_PAGES));
	CHECK_OK(ft_fake_replica_prepare(&r->cfg, &r->replica));
	CHECK_OK(r->vm->ops->track(r->vm));
	new_image(r, 64 << 20);
}

static void rig_free(struct rig *r)
{
	for (size_t i = 0; i < FT_ARRAY_LEN(r->tape); i++)
		for (unsigned k = 0; k < r->tape[i].nr; k++)
			ft_blob_free(&r->tape[i].rec[k].body);
	ft_image_free(r->im);
	r->replica->ops->destroy(r->replica);
	ft_encoder_free(r->en);
	ft_staging_free(r->st);
	ft_bitmap_free(&r->dirty);
	r->vm->ops->close(r->vm);
	ft_fake_guest_free(r->guest);
}

/* Let the guest run, then record epoch @number. */
static void run_epoch(struct rig *r, uint64_t number, uint64_t base, uint32_t flags)
{
	struct ft_chunk_sink sink = { .chunk = ft_encoder_chunk, .ctx = r->en };
	struct ft_capture_stats stats;
	struct ft_blob state;
	struct tape *t = &r->tape[number];

	for (unsigned i = 0; i < 5; i++)
		ft_fake_step(r->guest);
	*t = (struct tape){ .number = number, .base = base, .flags = flags };
	r->open = t;
	if (flags & FT_EPOCH_FULL)
		ft_bitmap_fill(&r->dirty);
	CHECK_OK(r->vm->ops->pause(r->vm));
	CHECK_OK(ft_encoder_begin(r->en, number, base, flags));
	CHECK_OK(ft_capture_epoch(r->vm, r->st, number, 0, &r->dirty, &sink, &state, &stats));
	t->digest = ft_fake_digest(r->guest);
	memcpy(t->ram, r->vm->ram, sizeof(t->ram));
	CHECK_OK(r->vm->ops->resume(r->vm));
	CHECK_OK(ft_encoder_end(r->en, &state));
}

/* Epoch 1 is full (and @flags), the others build on each other. */
static void run_epochs(struct rig *r, uint64_t nr, uint32_t flags)
{
	run_epoch(r, 1, 0, FT_EPOCH_FULL | flags);
	for (uint64_t n = 2; n <= nr; n++)
		run_epoch(r, n, n - 1, 0);
}

static int play_record(struct rig *r, const struct rec *rec)
{
	struct ft_wire_epoch_begin b;

	switch (rec->type) {
	case FT_REC_EPOCH_BEGIN:
		CHECK_OK(ft_wire_unpack_epoch_begin(rec->body.data, rec->body.len, &b));
		return ft_image_begin(r->im, b.epoch, b.base, b.flags);
	case FT_REC_PAGES:
		return ft_image_pages(r->im, rec->body.data, rec->body.len);
	case FT_REC_STATE:
		return ft_image_state(r->im, rec->body.data, rec->body.len);
	default:
		return ft_image_end(r->im, rec->body.data, rec->body.len);
	}
}

static int play(struct rig *r, uint64_t number)
{
	int rc = 0;

	for (unsigned i = 0; i < r->tape[number].nr && !rc; i++)
		rc = play_record(r, &r->tape[number].rec[i]);
	return rc;
}

/* RAM and state are epoch @number of the guest, and a replica would start from them. */
static void check_is(struct rig *r, uint64_t number)
{
	CHECK(ft_image_usable(r->im));
	CHECK_EQ(ft_image_applied_epoch(r->im), number);
	CHECK(ft_fake_replica_digest(r->replica, ft_image_applied_state(r->im)) == r->tape[number].digest);
}


/* --- whole epochs --- */

TEST(each_committed_epoch_is_the_guest_of_that_instant)
{
	struct rig r;

	rig_init(&r);
	run_epochs(&r, EPOCHS, 0);
	CHECK(!ft_image_usable(r.im));
	for (uint64_t n = 1; n <= EPOCHS; n++) {
		CHECK_OK(play(&r, n));
		CHECK_EQ(ft_image_whole_epoch(r.im), n);
		ft_image_commit(r.im);
		check_is(&r, n);
		CHECK_EQ(ft_image_staging_used(r.im), 0);
	}
	rig_free(&r);
}

TEST(a_replica_started_from_the_image_runs_as_the_guest_would)
{
	struct ft_fake_guest *g;
	struct ft_blob firmware;
	struct rig r;

	rig_init(&r);
	run_epochs(&r, 9, 0);
	for (uint64_t n = 1; n <= 9; n++)
		CHECK_OK(play(&r, n));
	ft_image_commit(r.im);
	CHECK_OK(r.vm->ops->firmware(r.vm, &firmware));
	CHECK_OK(r.replica->ops->start(r.replica, &firmware, ft_image_applied_state(r.im)));
	g = ft_fake_replica_guest(r.replica);
	for (unsigned i = 0; i < 100; i++) {
		ft_fake_step(g);
		ft_fake_step(r.guest);
		CHECK(ft_fake_digest(g) == ft_fake_digest(r.guest));
	}
	ft_fake_guest_free(g);
	ft_blob_free(&firmware);
	rig_free(&r);
}

TEST(half_an_epoch_is_thrown_away_at_every_record)
{
	struct rig r;

	rig_init(&r);
	run_epochs(&r, 3, 0);
	for (unsigned cut = 1; cut < r.tape[2].nr; cut++) {
		new_image(&r, 64 << 20);
		CHECK_OK(play(&r, 1));
		for (unsigned i = 0; i < cut; i++)
			CHECK_OK(play_record(&r, &r.tape[2].rec[i]));
		ft_image_commit(r.im);
		CHECK_EQ(ft_image_whole_epoch(r.im), 1);
		check_is(&r, 1);
		ft_image_discard_partial(r.im);
		CHECK_EQ(ft_image_staging_used(r.im), 0);
		CHECK_EQ(play_record(&r, &r.tape[2].rec[r.tape[2].nr - 1]), -EPROTO);
		CHECK_OK(play(&r, 2));
		CHECK_OK(play(&r, 3));
		ft_image_commit(r.im);
		check_is(&r, 3);
	}
	rig_free(&r);
}

TEST(whole_epochs_survive_the_partial_one_after_them)
{
	struct rig r;

	rig_init(&r);
	run_epochs(&r, 3, 0);
	CHECK_OK(play(&r, 1));
	CHECK_OK(play(&r, 2));
	CHECK_OK(play_record(&r, &r.tape[3].rec[0]));
	ft_image_discard_partial(r.im);
	CHECK(ft_image_usable(r.im));
	ft_image_commit(r.im);
	check_is(&r, 2);
	rig_free(&r);
}

TEST(nothing_is_usable_before_the_first_whole_epoch)
{
	struct rig r;

	rig_init(&r);
	run_epochs(&r, 2, 0);
	CHECK_EQ(play(&r, 2), -EPROTO);         /* builds on nothing */
	for (unsigned i = 0; i + 1 < r.tape[1].nr; i++) {
		CHECK_OK(play_record(&r, &r.tape[1].rec[i]));
		CHECK(!ft_image_usable(r.im));
	}
	CHECK_OK(play_record(&r, &r.tape[1].rec[r.tape[1].nr - 1]));
	CHECK(ft_image_usable(r.im));           /* not applied yet, but it can be */
	rig_free(&r);
}

TEST(after_reset_only_a_full_epoch_will_do)
{
	struct rig r;

	rig_init(&r);
	run_epochs(&r, 3, 0);
	CHECK_OK(play(&r, 1));
	CHECK_OK(play(&r, 2));
	ft_image_commit(r.im);
	ft_image_reset(r.im);
	CHECK(!ft_image_usable(r.im));
	CHECK_EQ(ft_image_whole_epoch(r.im), 0);
	CHECK_EQ(play(&r, 3), -EPROTO);
	CHECK_OK(play(&r, 1));
	ft_image_commit(r.im);
	check_is(&r, 1);
	rig_free(&r);
}

TEST(a_new_full_epoch_replaces_an_older_replica_only_when_it_is_whole)
{
	struct rig r;

	rig_init(&r);
	run_epochs(&r, 2, 0);
	ft_encoder_reset(r.en);
	run_epoch(&r, 3, 0, FT_EPOCH_FULL);
	CHECK_OK(play(&r, 1));
	CHECK_OK(play(&r, 2));
	ft_image_commit(r.im);
	for (unsigned i = 0; i + 1 < r.tape[3].nr; i++) {
		CHECK_OK(play_record(&r, &r.tape[3].rec[i]));
		ft_image_commit(r.im);
		check_is(&r, 2);
	}
	CHECK_OK(play_record(&r, &r.tape[3].rec[r.tape[3].nr - 1]));
	ft_image_commit(r.im);
	check_is(&r, 3);
	rig_free(&r);
}

/* --- bad streams --- */

TEST(a_flipped_bit_anywhere_is_found_before_the_epoch_counts)
{
	struct rig r;

	rig_init(&r);
	run_epochs(&r, 2, 0);
	for (unsigned i = 1; i < r.tape[2].nr; i++) {
		struct rec *rec = &r.tape[2].rec[i];
		size_t step = rec->body.len > 200 ? rec->body.len / 40 : 1;

		for (size_t at = 0; at < rec->body.len; at += step) {
			new_image(&r, 64 << 20);
			CHECK_OK(play(&r, 1));
			ft_image_commit(r.im);
			rec->body.data[at] ^= 0x10;
			if (play(&r, 2) != -EPROTO)
				ft_test_fail(__FILE__, __LINE__, "record %u, byte %zu", i, at);
			rec->body.data[at] ^= 0x10;
			ft_image_commit(r.im);
			check_is(&r, 1);
			CHECK_EQ(ft_image_staging_used(r.im), 0);
		}
	}
	rig_free(&r);
}

TEST(missing_doubled_and_swapped_records_are_found)
{
	struct rig r;
	struct tape *t;

	rig_init(&r);
	run_epochs(&r, 2, 0);
	t = &r.tape[1];
	for (unsigned i = 0; i < t->nr; i++)
		for (unsigned kind = 0; kind < 3; kind++) {
			int rc = 0;

			if (kind == 2 && i + 1 == t->nr)
				continue;
			new_image(&r, 64 << 20);
			for (unsigned k = 0; k < t->nr && !rc; k++) {
				unsigned which = kind == 2 && k == i ? i + 1 : kind == 2 && k == i + 1 ? i : k;

				if (kind == 0 && k == i)
					continue;
				rc = play_record(&r, &t->rec[which]);
				if (!rc && kind == 1 && k == i)
					rc = play_record(&r, &t->rec[which]);
			}
			/* BEGIN doubled just begins again. A missing END leaves the epoch open. */
			if ((kind == 1 && i == 0) || (kind == 0 && i + 1 == t->nr))
				continue;
			if (rc != -EPROTO && !(kind == 1 && i + 1 == t->nr))
				ft_test_fail(__FILE__, __LINE__, "record %u, kind %u: %d", i, kind, rc);
			CHECK_EQ(ft_image_usable(r.im), kind == 1 && i + 1 == t->nr);
		}
	rig_free(&r);
}

TEST(an_epoch_on_another_base_is_refused)
{
	struct rig r;

	rig_init(&r);
	run_epochs(&r, 4, 0);
	CHECK_OK(play(&r, 1));
	CHECK_EQ(play(&r, 3), -EPROTO);         /* a gap */
	CHECK_OK(play(&r, 2));
	CHECK_EQ(play(&r, 2), -EPROTO);         /* once more */
	CHECK_EQ(ft_image_begin(r.im, 2, 2, 0), -EPROTO);
	CHECK_EQ(ft_image_begin(r.im, 3, 0, 0), -EPROTO);
	CHECK_EQ(ft_image_begin(r.im, 3, 2, FT_EPOCH_FULL), -EPROTO);
	CHECK_EQ(ft_image_begin(r.im, 3, 2, 4), -EPROTO);
	CHECK_EQ(ft_image_begin(r.im, 3, 0, FT_EPOCH_DIRECT), -EPROTO);
	CHECK_OK(play(&r, 3));
	ft_image_commit(r.im);
	check_is(&r, 3);
	rig_free(&r);
}

TEST(a_resumed_session_may_skip_numbers)
{
	struct rig r;

	rig_init(&r);
	run_epochs(&r, 2, 0);
	CHECK_OK(play(&r, 1));
	/* Epoch 2 was lost on the way: what it held goes into epoch 5, without relying on the shadow. */
	ft_bitmap_fill(&r.dirty);
	ft_encoder_reset(r.en);
	run_epoch(&r, 5, 1, 0);
	CHECK_OK(play(&r, 5));
	ft_image_commit(r.im);
	check_is(&r, 5);
	rig_free(&r);
}

TEST(a_full_epoch_must_bring_every_page_itself)
{
	struct ft_codec_stats st = { 0 };
	struct ft_chunk c = { .nr = 1 };
	struct ft_shadow *shadow;
	struct ft_codec *cd;
	uint8_t *block = malloc(FT_BLOCK_MAX);
	ssize_t len;
	struct rig r;

	rig_init(&r);
	CHECK_OK(ft_codec_new(&cd));
	CHECK_OK(ft_shadow_new(NR_PAGES, &shadow));
	c.data = calloc(1, FT_PAGE_SIZE);
	CHECK(ft_codec_encode(cd, shadow, &c, block, &st) > 0);
	c.data[5] = 1;
	len = ft_codec_encode(cd, shadow, &c, block, &st);
	CHECK_EQ(st.delta, 1);
	CHECK_OK(ft_image_begin(r.im, 1, 0, FT_EPOCH_FULL));
	CHECK_EQ(ft_image_pages(r.im, block, (size_t)len), -EPROTO);    /* a delta to nothing */
	ft_codec_free(cd);
	ft_shadow_free(shadow);
	free(c.data);
	free(block);
	rig_free(&r);
}

TEST(a_full_epoch_that_lacks_a_page_is_refused)
{
	struct rig r;

	rig_init(&r);
	/* The encoder is asked for a FULL epoch, but capture does not bring all pages. */
	for (unsigned i = 0; i < 5; i++)
		ft_fake_step(r.guest);
	run_epoch(&r, 1, 0, FT_EPOCH_FULL);
	ft_encoder_reset(r.en);
	{
		struct ft_chunk_sink sink = { .chunk = ft_encoder_chunk, .ctx = r.en };
		struct ft_capture_stats stats;
		struct ft_blob state;

		r.tape[2] = (struct tape){ .number = 2, .flags = FT_EPOCH_FULL };
		r.open = &r.tape[2];
		ft_bitmap_set_range(&r.dirty, 0, NR_PAGES - 1);
		CHECK_OK(r.vm->ops->pause(r.vm));
		CHECK_OK(ft_encoder_begin(r.en, 2, 0, FT_EPOCH_FULL));
		CHECK_OK(ft_capture_epoch(r.vm, r.st, 2, 0, &r.dirty, &sink, &state, &stats));
		CHECK_OK(ft_encoder_end(r.en, &state));
	}
	CHECK_EQ(play(&r, 2), -EPROTO);
	CHECK(!ft_image_usable(r.im));
	CHECK_OK(play(&r, 1));
	rig_free(&r);
}

TEST(a_state_beyond_the_limit_is_refused)
{
	uint8_t big[STATE_MAX + 1] = { 0 };
	struct rig r;

	rig_init(&r);
	CHECK_OK(ft_image_begin(r.im, 1, 0, FT_EPOCH_FULL));
	CHECK_EQ(ft_image_state(r.im, big, sizeof(big)), -EPROTO);
	CHECK_EQ(ft_image_state(r.im, big, 1), -EPROTO);        /* there is no epoch any more */
	rig_free(&r);
}

/* --- direct --- */

TEST(a_direct_epoch_writes_ram_at_once_and_counts_at_its_end)
{
	struct rig r;

	rig_init(&r);
	run_epochs(&r, 3, FT_EPOCH_DIRECT);
	for (unsigned i = 0; i + 1 < r.tape[1].nr; i++) {
		CHECK_OK(play_record(&r, &r.tape[1].rec[i]));
		CHECK_EQ(ft_image_staging_used(r.im), 0);
		CHECK(!ft_image_usable(r.im));
	}
	CHECK(!memcmp(r.replica->ram, r.tape[1].ram, sizeof(r.tape[1].ram)));  /* though RAM is there */
	CHECK_OK(play_record(&r, &r.tape[1].rec[r.tape[1].nr - 1]));
	check_is(&r, 1);
	CHECK_OK(play(&r, 2));
	CHECK_OK(play(&r, 3));
	ft_image_commit(r.im);
	check_is(&r, 3);
	rig_free(&r);
}

TEST(a_direct_epoch_never_overwrites_a_usable_image)
{
	struct rig r;

	rig_init(&r);
	run_epochs(&r, 1, 0);
	CHECK_OK(play(&r, 1));
	CHECK_EQ(ft_image_begin(r.im, 2, 0, FT_EPOCH_FULL | FT_EPOCH_DIRECT), -EPROTO);
	ft_image_commit(r.im);
	CHECK_EQ(ft_image_begin(r.im, 2, 0, FT_EPOCH_FULL | FT_EPOCH_DIRECT), -EPROTO);
	check_is(&r, 1);
	rig_free(&r);
}

TEST(a_direct_epoch_cut_off_leaves_nothing_usable)
{
	struct rig r;

	rig_init(&r);
	run_epochs(&r, 2, FT_EPOCH_DIRECT);
	for (unsigned i = 0; i + 1 < r.tape[1].nr; i++)
		CHECK_OK(play_record(&r, &r.tape[1].rec[i]));
	ft_image_discard_partial(r.im);
	ft_image_commit(r.im);
	CHECK(!ft_image_usable(r.im));
	CHECK_EQ(play(&r, 2), -EPROTO);
	CHECK_OK(play(&r, 1));
	CHECK_OK(play(&r, 2));
	ft_image_commit(r.im);
	check_is(&r, 2);
	rig_free(&r);
}

/* --- hold --- */

TEST(while_held_ram_stands_still_and_epochs_are_still_taken)
{
	struct rig r;

	rig_init(&r);
	run_epochs(&r, EPOCHS, 0);
	CHECK_OK(play(&r, 1));
	ft_image_commit(r.im);
	ft_image_hold(r.im, true);
	for (uint64_t n = 2; n <= EPOCHS; n++) {
		CHECK_OK(play(&r, n));
		CHECK_EQ(ft_image_whole_epoch(r.im), n);
		ft_image_commit(r.im);
		check_is(&r, 1);
	}
	ft_image_hold(r.im, false);
	ft_image_commit(r.im);
	check_is(&r, EPOCHS);
	CHECK_EQ(ft_image_staging_used(r.im), 0);
	rig_free(&r);
}

/* --- spilling --- */

static void spill_and_check(struct rig *r, size_t bound)
{
	new_image(r, bound);
	CHECK_OK(play(r, 1));
	ft_image_commit(r->im);
	ft_image_hold(r->im, true);
	for (uint64_t n = 2; n <= EPOCHS; n++) {
		CHECK_OK(play(r, n));
		CHECK(ft_image_staging_used(r->im) <= bound);
		/* Half of the next one, thrown away: its stretch of the file is used again. */
		if (n < EPOCHS)
			for (unsigned i = 0; i + 1 < r->tape[n + 1].nr; i++)
				CHECK_OK(play_record(r, &r->tape[n + 1].rec[i]));
		ft_image_discard_partial(r->im);
	}
	check_is(r, 1);
	ft_image_hold(r->im, false);
	ft_image_commit(r->im);
	check_is(r, EPOCHS);
}

TEST(what_exceeds_the_bound_goes_through_a_file)
{
	static const size_t bounds[] = { 0, 1, 5000, 100000, 1 << 20 };
	struct rig r;

	rig_init(&r);
	run_epochs(&r, EPOCHS, 0);
	for (size_t i = 0; i < FT_ARRAY_LEN(bounds); i++)
		spill_and_check(&r, bounds[i]);
	rig_free(&r);
}

TEST(the_spill_file_has_no_name)
{
	char cmd[200];
	struct rig r;

	rig_init(&r);
	run_epochs(&r, 1, 0);
	new_image(&r, 0);
	CHECK_OK(play(&r, 1));
	snprintf(cmd, sizeof(cmd), "test -z \"$(ls -A %s)\"", ft_test_dir());
	CHECK_EQ(system(cmd), 0);
	rig_free(&r);
}

/* Our own descriptor of the unlinked file. */
static int spill_fd(void)
{
	for (int fd = 3; fd < 100; fd++) {
		char path[32], target[200];
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		n = readlink(path, target, sizeof(target) - 1);
		if (n > 0 && !strncmp(target, ft_test_dir(), strlen(ft_test_dir())))
			return fd;
	}
	return -1;
}

TEST(a_disk_that_gives_other_bytes_back_makes_no_wrong_image)
{
	struct rig r;
	int fd;

	rig_init(&r);
	run_epochs(&r, 3, 0);
	new_image(&r, 0);
	CHECK_OK(play(&r, 1));
	ft_image_commit(r.im);
	check_is(&r, 1);
	CHECK_OK(play(&r, 2));
	fd = spill_fd();
	CHECK(fd >= 0);
	CHECK_EQ(pwrite(fd, "\xff\xff\xff\xff", 4, 40), 4);
	ft_image_commit(r.im);
	CHECK(!ft_image_usable(r.im));
	CHECK(ft_test_logged("full copy"));
	CHECK_EQ(play(&r, 3), -EPROTO);
	CHECK_OK(play(&r, 1));
	ft_image_commit(r.im);
	check_is(&r, 1);
	rig_free(&r);
}

TEST(a_spill_directory_that_is_missing_says_so_and_the_image_stays)
{
	struct rig r;

	rig_init(&r);
	run_epochs(&r, 2, 0);
	CHECK_OK(play(&r, 1));
	ft_image_commit(r.im);
	ft_image_free(r.im);
	r.im = NULL;
	new_image(&r, 0);
	ft_image_free(r.im);
	r.icfg.spill_dir = "/nonexistent/ft";
	CHECK_OK(ft_image_new(&r.icfg, &r.im));
	CHECK_EQ(play(&r, 1), -ENOENT);
	CHECK(ft_test_logged("/nonexistent/ft"));
	CHECK(!ft_image_usable(r.im));
	rig_free(&r);
}

TEST(a_full_disk_is_an_error_and_never_a_wrong_image)
{
	struct rig r;

	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("none", ft_test_dir(), "tmpfs", 0, "size=64k"))
		ft_test_skip("needs the right to mount a small tmpfs (%s)", strerror(errno));
	rig_init(&r);
	run_epochs(&r, 3, 0);
	CHECK_OK(play(&r, 1));
	ft_image_commit(r.im);
	run_epoch(&r, 4, 0, FT_EPOCH_FULL);
	r.icfg.staging_bound = 0;
	ft_image_free(r.im);
	CHECK_OK(ft_image_new(&r.icfg, &r.im));
	CHECK_EQ(play(&r, 1), -ENOSPC);
	CHECK(ft_test_logged("No space left"));
	CHECK(!ft_image_usable(r.im));
	CHECK_EQ(ft_image_whole_epoch(r.im), 0);
	rig_free(&r);
}

/* --- verification --- */

TEST(hashes_find_the_one_page_that_differs)
{
	size_t nr = ft_hash_count(NR_PAGES);
	uint64_t a[2], b[2];
	struct rig r;

	CHECK_EQ(nr, 2);
	rig_init(&r);
	ft_hash_ram(r.vm->ram, NR_PAGES, a);
	memcpy(r.replica->ram, r.vm->ram, (size_t)NR_PAGES * FT_PAGE_SIZE);
	ft_hash_ram(r.replica->ram, NR_PAGES, b);
	CHECK(a[0] == b[0] && a[1] == b[1]);
	r.replica->ram[(size_t)NR_PAGES * FT_PAGE_SIZE - 1] ^= 1;
	ft_hash_ram(r.replica->ram, NR_PAGES, b);
	CHECK(a[0] == b[0] && a[1] != b[1]);
	rig_free(&r);
}

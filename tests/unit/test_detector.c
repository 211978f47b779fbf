// SPDX-License-Identifier: GPL-3.0-or-later
/* test_detector.c - silence is judged late rather than wrongly, and a lease is over before it. */
#include "ft/detector.h"
#include "tests/test.h"

#define MS FT_MS_NS

static struct ft_silence watching(void)
{
	struct ft_silence s;

	ft_silence_init(&s, 1000 * MS, 300 * MS, 50 * MS);
	return s;
}

/* Judge every 50 ms from @from to @to (ms); the first time it is silent, or 0. */
static unsigned judge(struct ft_silence *s, unsigned from, unsigned to)
{
	for (unsigned t = from; t <= to; t += 50)
		if (ft_silence_judge(s, t * MS))
			return t;
	return 0;
}

TEST(silence_for_the_whole_window_is_silence)
{
	struct ft_silence s = watching();

	CHECK_EQ(judge(&s, 1050, 2000), 1300);
	CHECK_EQ(s.stalls, 0);
}

TEST(each_sign_of_life_starts_the_window_again)
{
	struct ft_silence s = watching();

	CHECK_EQ(judge(&s, 1050, 1250), 0);
	ft_silence_life(&s, 1260 * MS);
	CHECK_EQ(judge(&s, 1300, 1550), 0);
	CHECK_EQ(judge(&s, 1600, 2000), 1600);
}

TEST(a_sign_of_life_told_late_does_not_move_time_back)
{
	struct ft_silence s = watching();

	ft_silence_life(&s, 1200 * MS);
	ft_silence_life(&s, 1100 * MS);
	CHECK_EQ(judge(&s, 1050, 2000), 1500);
	ft_silence_life(&s, 5000 * MS);         /* of another thread, a little ahead of us */
	CHECK(!ft_silence_judge(&s, 1550 * MS));
}

TEST(who_slept_restarts_the_window_before_judging)
{
	struct ft_silence s = watching();

	CHECK_EQ(judge(&s, 1050, 1100), 0);
	CHECK(!ft_silence_judge(&s, 6000 * MS));        /* stopped for five seconds: says nothing about the peer */
	CHECK_EQ(s.stalls, 1);
	CHECK_EQ(judge(&s, 6050, 6250), 0);
	CHECK_EQ(judge(&s, 6300, 7000), 6300);
	CHECK_EQ(s.stalls, 1);
}

TEST(a_tick_that_is_a_little_late_is_no_stall)
{
	struct ft_silence s = watching();

	for (unsigned t = 1150; t < 1300; t += 150)
		CHECK(!ft_silence_judge(&s, t * MS));
	CHECK(ft_silence_judge(&s, 1300 * MS));
	CHECK_EQ(s.stalls, 0);
}

TEST(a_lease_counts_from_sending_and_never_shrinks)
{
	struct ft_lease l;

	ft_lease_init(&l, 300 * MS);
	CHECK_EQ(l.lease_ns, 240 * MS);
	CHECK(!ft_lease_fresh(&l, 0));
	ft_lease_renew(&l, 1000 * MS);
	ft_lease_renew(&l, 900 * MS);           /* an older echo, overtaken on another path */
	CHECK(ft_lease_fresh(&l, 1239 * MS));
	CHECK(!ft_lease_fresh(&l, 1240 * MS));
	ft_lease_renew(&l, 1100 * MS);
	CHECK(ft_lease_fresh(&l, 1339 * MS));
	ft_lease_revoke(&l);
	CHECK(!ft_lease_fresh(&l, 1101 * MS));
}

TEST(a_window_too_short_for_its_margin_gives_no_lease)
{
	struct ft_lease l;

	ft_lease_init(&l, 60 * MS);
	CHECK_EQ(l.lease_ns, 40 * MS);
	ft_lease_init(&l, 15 * MS);
	ft_lease_renew(&l, 1000 * MS);
	CHECK(!ft_lease_fresh(&l, 1000 * MS));
}

/* --- the property behind "one guest": whenever the backup takes over, no lease is left --- */

static uint64_t seed;

static unsigned pick(unsigned below)    /* splitmix64 */
{
	uint64_t z = (seed += 0x9e3779b97f4a7c15ull);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return (unsigned)((z ^ z >> 31) % below);
}

struct host {                           /* its clock: an offset, and up to 1 % fast or slow */
	uint64_t offset;
	int drift;                      /* in 1/10000 */
	uint64_t stopped_until;         /* real time, us */
};

static uint64_t clock_of(const struct host *h, uint64_t real_us)
{
	return h->offset + real_us * 1000 + (uint64_t)((int64_t)real_us * h->drift / 10);
}

struct message {
	uint64_t arrives;               /* real us; 0: none */
	uint64_t sent_ns;               /* the primary's clock */
};
#define NR_MESSAGES 64

static void post(struct message *box, uint64_t real, uint64_t sent_ns, bool cut)
{
	if (cut || pick(100) < 10)
		return;                                                 /* lost */
	for (int i = 0; i < NR_MESSAGES; i++)
		if (!box[i].arrives) {
			box[i] = (struct message){ real + 1 + pick(pick(20) ? 2000 : 400000), sent_ns };
			return;
		}
}

/* One life of a pair; true when a lease was still fresh at the takeover. @lease_ms 0: the one of ft_lease_init. */
static bool overlaps(unsigned lease_ms, bool *taken)
{
	struct host primary = { .offset = pick(1000000), .drift = (int)pick(201) - 100 };
	struct host backup = { .offset = pick(1000000) + FT_S_NS, .drift = (int)pick(201) - 100 };
	struct message beats[NR_MESSAGES] = { { 0 } }, echoes[NR_MESSAGES] = { { 0 } };
	uint64_t cut = pick(4) ? 200000 + pick(1500000) : UINT64_MAX;
	struct ft_silence silence;
	struct ft_lease lease;

	ft_silence_init(&silence, clock_of(&backup, 0), 300 * MS, 50 * MS);
	ft_lease_init(&lease, 300 * MS);
	if (lease_ms)
		lease.lease_ns = lease_ms * MS;
	for (uint64_t now = 1; now < 3000000; now += 500) {
		for (int i = 0; i < NR_MESSAGES && now >= backup.stopped_until; i++)
			if (beats[i].arrives && beats[i].arrives <= now) {
				ft_silence_life(&silence, clock_of(&backup, now));
				post(echoes, now, beats[i].sent_ns, now > cut);
				beats[i].arrives = 0;
			}
		for (int i = 0; i < NR_MESSAGES && now >= primary.stopped_until; i++)
			if (echoes[i].arrives && echoes[i].arrives <= now) {
				ft_lease_renew(&lease, echoes[i].sent_ns);
				echoes[i].arrives = 0;
			}
		if (now % 30000 < 500 && now >= primary.stopped_until)
			post(beats, now, clock_of(&primary, now), now > cut);
		if (now % 50000 < 500 && now >= backup.stopped_until && ft_silence_judge(&silence, clock_of(&backup, now))) {
			*taken = true;
			return ft_lease_fresh(&lease, clock_of(&primary, now));
		}
		if (!pick(1000))
			primary.stopped_until = now + pick(800000);
		if (!pick(1000))
			backup.stopped_until = now + pick(800000);
	}
	return false;
}

TEST(a_lease_is_over_before_silence_is_judged_whatever_happens)
{
	unsigned nr_taken = 0;

	for (seed = 0; seed < 1000u * 0x10000; seed = (seed & ~0xffffull) + 0x10000) {
		uint64_t start = seed;
		bool taken = false;

		if (overlaps(0, &taken))
			ft_test_fail(__FILE__, __LINE__, "seed %llx: takeover under a lease", (unsigned long long)start);
		nr_taken += taken;
		seed = start;
	}
	printf("# %u takeovers in 1000 lives\n", nr_taken);
	CHECK(nr_taken > 500);
}

TEST(a_lease_as_long_as_the_window_would_be_caught)
{
	unsigned caught = 0;

	for (unsigned life = 0; life < 1000; life++) {
		bool taken = false;

		seed = (uint64_t)life << 16;
		caught += overlaps(300, &taken);
	}
	CHECK(caught > 0);
}

// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * test_sim.c - lives of a protected guest, by the thousand. SIM_SEEDS=N for more of them, SIM_SEED=N to
 * see one in every detail, SIM_MUTANT=name to watch a broken world.
 */
#include "tests/sim/sim.h"
#include "tests/test.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#define SEEDS 3000u
#define MUTANT_SEEDS 1500u

static unsigned long from_env(const char *name, unsigned long otherwise)
{
	const char *text = getenv(name);

	return text ? strtoul(text, NULL, 10) : otherwise;
}

static uint64_t current;                /* seed under way, for the line that a crash leaves behind */

static void crashed(int sig)
{
	char line[80];
	int len = snprintf(line, sizeof(line), "# signal %d; see it again: SIM_SEED=%llu\n", sig, (unsigned long long)current);

	if (write(STDOUT_FILENO, line, (size_t)len) != len)
		_exit(2);
	_exit(1);
}

/* Seeds @first, @first + 2, ...: 0, or the first one that broke an invariant. */
static uint64_t run_half(uint64_t first, uint64_t last)
{
	struct sim_result total = { 0 }, r;

	signal(SIGABRT, crashed);
	signal(SIGSEGV, crashed);
	for (uint64_t seed = first; seed <= last; seed += 2) {
		current = seed;
		sim_run(seed, SIM_HONEST, false, &r);
		if (!r.ok) {
			printf("# seed %llu: %s\n# see it again: SIM_SEED=%llu\n", (unsigned long long)seed, r.why,
			       (unsigned long long)seed);
			return seed;
		}
		total.epochs += r.epochs;
		total.takeovers += r.takeovers;
		total.faults += r.faults;
		total.released += r.released;
		total.disk_copies += r.disk_copies;
		total.disk_granules += r.disk_granules;
	}
	printf("# %llu takeovers, %llu faults, %llu packets released, %llu granules compared in %llu copies of the disk\n",
	       (unsigned long long)total.takeovers, (unsigned long long)total.faults, (unsigned long long)total.released,
	       (unsigned long long)total.disk_granules, (unsigned long long)total.disk_copies);
	return 0;
}

TEST_TIMEOUT(every_life_keeps_the_promises, 36000)
{
	uint64_t seeds = from_env("SIM_SEEDS", SEEDS);
	bool bad[2] = { false };
	pid_t pid[2];

	fflush(stdout);
	for (int i = 0; i < 2; i++) {
		pid[i] = fork();
		CHECK(pid[i] >= 0);
		if (pid[i] == 0) {
			uint64_t seed = run_half(1 + (uint64_t)i, seeds);

			fflush(stdout);
			_exit(seed != 0);
		}
	}
	for (int i = 0; i < 2; i++) {
		int status;

		CHECK_EQ(waitpid(pid[i], &status, 0), pid[i]);
		bad[i] = status != 0;
	}
	CHECK(!bad[0] && !bad[1]);
}

TEST_TIMEOUT(a_seed_replays_exactly, 120)
{
	struct sim_result a, b;

	for (uint64_t seed = 1; seed <= 10; seed++) {
		sim_run(seed, SIM_HONEST, false, &a);
		sim_run(seed, SIM_HONEST, false, &b);
		CHECK(a.ok == b.ok && a.released == b.released && a.faults == b.faults && a.takeovers == b.takeovers &&
		      a.answered == b.answered && !strcmp(a.why, b.why));
	}
}

TEST_TIMEOUT(every_broken_world_is_caught, 600)
{
	for (enum sim_mutant m = SIM_HONEST + 1; m < SIM_MUTANTS; m++) {
		struct sim_result r = { .ok = true };
		uint64_t seed = 0;

		while (r.ok && ++seed <= MUTANT_SEEDS)
			sim_run(seed, m, false, &r);
		if (r.ok)
			ft_test_fail(__FILE__, __LINE__, "%s: not caught in %u seeds", sim_mutant_name(m), MUTANT_SEEDS);
		printf("# %s: caught by seed %llu: %s\n", sim_mutant_name(m), (unsigned long long)seed, r.why);
	}
}

TEST_TIMEOUT(one_life_in_every_detail, 120)
{
	const char *name = getenv("SIM_MUTANT");
	enum sim_mutant m = SIM_HONEST;
	struct sim_result r;

	if (!getenv("SIM_SEED"))
		ft_test_skip("set SIM_SEED to see one");
	while (name && m < SIM_MUTANTS && strcmp(name, sim_mutant_name(m)))
		m++;
	CHECK(m < SIM_MUTANTS);
	sim_run(from_env("SIM_SEED", 1), m, true, &r);
	if (!r.ok)
		ft_test_fail(__FILE__, __LINE__, "%s", r.why);
}

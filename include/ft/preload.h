// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * preload.h - the page shared with ft-preload.so inside QEMU (LD_PRELOAD, set by ft-guest and ftd).
 *
 * The preload does what only code inside QEMU can do: it makes a userfaultfd (dirty tracking from outside
 * then takes it with pidfd_getfd), and it holds CLOCK_MONOTONIC still while the guest is paused, so that
 * QEMU's virtual clock jumps over the pause at `cont` instead of losing it. Under KVM the guest has a second
 * clock, kvmclock, which QEMU reads in `stop` and writes back in `cont` (KVM_GET_CLOCK, KVM_SET_CLOCK): the
 * preload adds to what is written in a hold the time that has passed since it was read.
 * The page is a 4 KiB file named by FT_PRELOAD_PAGE in QEMU's environment, created by the launcher; without
 * it, or if anything fails, the preload does nothing and QEMU runs as ever.
 */
#ifndef FT_PRELOAD_H
#define FT_PRELOAD_H

#include <stdatomic.h>
#include <stdint.h>

#define FT_PRELOAD_MAGIC 0x6c70746675ull
#define FT_PRELOAD_VERSION 1u
#define FT_PRELOAD_SIZE 4096

struct ft_preload_page {
	_Atomic uint64_t magic;         /* written last by the preload: the rest above `hold` is valid */
	uint32_t version;
	_Atomic int32_t pid;            /* of the process whose preload has this page; 0: none yet */
	int32_t uffd;                   /* fd number inside QEMU; -1: this kernel has none that serves */
	uint64_t uffd_features;         /* of the UFFDIO_API answer */
	/*
	 * ft-protect writes. hold_seq even: time runs. Odd: time is to stand still; the first call of
	 * clock_gettime that sees a new odd value latches its instant and every call answers with it until
	 * hold_seq changes or hold_limit_ns have really passed (a dead ft-protect must not stop QEMU's time).
	 * Hold before QMP stop and let go after cont has returned: the virtual clock takes its offset from
	 * the clock in both, and must find the same instant there. hold_limit_ns is set first.
	 */
	_Atomic uint64_t hold_seq;
	_Atomic uint64_t hold_limit_ns;
	/*
	 * The latch is set this much before the instant of the first call. 0, except at a takeover: an epoch is
	 * loaded in the instant it came from, and when the hold ends the guest's clock catches up with the host's.
	 */
	_Atomic uint64_t hold_back_ns;
	/* preload writes: the latch, for diagnosis and tests. */
	_Atomic uint64_t latched_seq;
	_Atomic uint64_t latched_ns;
};

#endif

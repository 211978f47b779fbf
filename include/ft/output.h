// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * output.h - one lifecycle for everything that holds the guest's output: netbuf, and the disk mirror.
 *
 * The epoch loop drives an array of these; it knows nothing of packets or blocks.
 * Order: setup, { seal(1), commit(..), seal(2), ... }, then teardown. Several epochs may be sealed and
 * not committed. commit(n) covers every sealed epoch <= n. Loop thread only; none of them may block.
 */
#ifndef FT_OUTPUT_H
#define FT_OUTPUT_H

#include "ft/base.h"

struct ft_output {
	const struct ft_output_ops *ops;
};

struct ft_output_ops {
	const char *name;
	/* Close the output: from here on everything is held. Fails if it cannot be held completely. */
	int (*setup)(struct ft_output *o) FT_MUST_CHECK;
	/*
	 * Guest is paused. What was sent until now belongs to @epoch, what comes later to @epoch + 1.
	 * Fails (-EIO: output lost or leaking, fail closed) when holding is no longer complete.
	 */
	int (*seal)(struct ft_output *o, uint64_t epoch) FT_MUST_CHECK;
	/* The backup has @epoch and the right to speak is fresh: let everything up to @epoch go. */
	int (*commit)(struct ft_output *o, uint64_t epoch) FT_MUST_CHECK;
	/* Drop everything held, for ever (the backup has taken over). The output stays closed. */
	void (*discard)(struct ft_output *o);
	/*
	 * Open the output for good and take our rules out. Only after DISARM was acknowledged, or, after a discard, when
	 * the instance that was behind them has been destroyed.
	 * Never called on a failure path: rules that stay are what keeps a failed primary mute.
	 */
	int (*teardown)(struct ft_output *o) FT_MUST_CHECK;
	/* Free our handle; held output is dropped and the rules stay, closed. NULL is fine. */
	void (*free)(struct ft_output *o);
};

#endif

// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * xen_cpu.c - what a guest sees of its processor: a domain's CPUID leaves and MSRs, as Xen lists them. See checkpoint/xen.h.
 *
 *   "ftxc" version32 nr_leaves32 nr_msrs32 { leaf32 subleaf32 a32 b32 c32 d32 }... { index32 flags32 value64 }...
 *
 * All little-endian. xl gives a replica what its host has. A guest has made its choices by what it saw where it booted, so
 * the replica is given that, as a migrated domain is; Xen leaves out what its host cannot do, and that is looked for.
 */
#include "checkpoint/xen.h"

#include <xenguest.h>

#define MAGIC 0x63787466u
#define VERSION 1u
#define HEADER 16u
#define LEAF_LEN 24u
#define MSR_LEN 16u
#define NR_MAX 512u                     /* of either; Xen has room for a good hundred leaves, and a few MSRs */

struct cpu {
	uint32_t nr_leaves, nr_msrs;
	xen_cpuid_leaf_t leaf[NR_MAX];
	xen_msr_entry_t msr[NR_MAX];
};

static int read_cpu(const struct xen_dom *d, struct cpu *c)
{
	xc_cpu_policy_t *policy = xc_cpu_policy_init();
	int rc = 0;

	c->nr_leaves = c->nr_msrs = NR_MAX;
	if (!policy || xc_cpu_policy_get_domain(d->xc, d->domid, policy) ||
	    xc_cpu_policy_serialise(d->xc, policy, c->leaf, &c->nr_leaves, c->msr, &c->nr_msrs))
		rc = errno ? -errno : -EIO;
	if (policy)
		xc_cpu_policy_destroy(policy);
	if (rc)
		ft_err("%s: Xen does not say what processor it sees: %s", d->guest, strerror(-rc));
	return rc;
}

int xen_cpu_save(const struct xen_dom *d, struct ft_blob *out)
{
	struct cpu c;
	int rc = read_cpu(d, &c);
	uint8_t *p;

	*out = (struct ft_blob){ 0 };
	if (!rc) {
		out->len = HEADER + c.nr_leaves * LEAF_LEN + c.nr_msrs * MSR_LEN;
		out->data = malloc(out->len);
		rc = out->data ? 0 : -ENOMEM;
	}
	if (rc)
		return rc;
	p = out->data;
	ft_put32(p, MAGIC);
	ft_put32(p + 4, VERSION);
	ft_put32(p + 8, c.nr_leaves);
	ft_put32(p + 12, c.nr_msrs);
	p += HEADER;
	for (uint32_t i = 0; i < c.nr_leaves; i++, p += LEAF_LEN) {
		const uint32_t word[] = { c.leaf[i].leaf, c.leaf[i].subleaf, c.leaf[i].a, c.leaf[i].b, c.leaf[i].c, c.leaf[i].d };

		for (unsigned w = 0; w < FT_ARRAY_LEN(word); w++)
			ft_put32(p + 4 * w, word[w]);
	}
	for (uint32_t i = 0; i < c.nr_msrs; i++, p += MSR_LEN) {
		ft_put32(p, c.msr[i].idx);
		ft_put32(p + 4, c.msr[i].flags);
		ft_put64(p + 8, c.msr[i].val);
	}
	return 0;
}

static int parse(const struct ft_blob *b, struct cpu *c)
{
	const uint8_t *p = b->data;

	if (b->len < HEADER || ft_le32(p) != MAGIC || ft_le32(p + 4) != VERSION)
		return -EPROTO;
	c->nr_leaves = ft_le32(p + 8);
	c->nr_msrs = ft_le32(p + 12);
	if (c->nr_leaves > NR_MAX || c->nr_msrs > NR_MAX || b->len != HEADER + c->nr_leaves * LEAF_LEN + c->nr_msrs * MSR_LEN)
		return -EPROTO;
	p += HEADER;
	for (uint32_t i = 0; i < c->nr_leaves; i++, p += LEAF_LEN)
		c->leaf[i] = (xen_cpuid_leaf_t){ ft_le32(p), ft_le32(p + 4), ft_le32(p + 8), ft_le32(p + 12), ft_le32(p + 16), ft_le32(p + 20) };
	for (uint32_t i = 0; i < c->nr_msrs; i++, p += MSR_LEN)
		c->msr[i] = (xen_msr_entry_t){ .idx = ft_le32(p), .flags = ft_le32(p + 4), .val = ft_le64(p + 8) };
	return 0;
}

#define REMEDY "use processors of one kind, or let the domain's own file say less (cpuid in xl.cfg(5)) and start it anew"

static int compare(const struct xen_dom *d, const struct cpu *theirs, const struct cpu *ours)
{
	for (uint32_t i = 0; i < theirs->nr_leaves && i < ours->nr_leaves; i++) {
		const xen_cpuid_leaf_t *t = &theirs->leaf[i], *o = &ours->leaf[i];

		if (!memcmp(t, o, sizeof(*t)))
			continue;
		ft_err("%s: the guest sees a processor that this host cannot show it: CPUID leaf %x/%x is %08x %08x %08x %08x there, "
		       "leaf %x/%x %08x %08x %08x %08x here: " REMEDY, d->guest, t->leaf, t->subleaf, t->a, t->b, t->c, t->d,
		       o->leaf, o->subleaf, o->a, o->b, o->c, o->d);
		return -ENOEXEC;
	}
	if (theirs->nr_leaves == ours->nr_leaves && theirs->nr_msrs == ours->nr_msrs &&
	    !memcmp(theirs->msr, ours->msr, ours->nr_msrs * sizeof(*ours->msr)))
		return 0;
	ft_err("%s: the guest sees a processor that this host cannot show it: %u CPUID leaves and %u MSRs there, %u and %u or others here: "
	       REMEDY, d->guest, theirs->nr_leaves, theirs->nr_msrs, ours->nr_leaves, ours->nr_msrs);
	return -ENOEXEC;
}

int xen_cpu_take(const struct xen_dom *d, const struct ft_blob *theirs)
{
	uint32_t leaf = 0, subleaf = 0, msr = 0;
	struct cpu there, here;
	int rc = parse(theirs, &there);

	if (rc) {
		ft_err("%s: what should be the guest's processor is none: both hosts need the same ft", d->guest);
		rc = -ENOEXEC;
	} else if (xc_set_domain_cpu_policy(d->xc, d->domid, there.nr_leaves, there.leaf, there.nr_msrs, there.msr, &leaf, &subleaf,
					    &msr)) {
		ft_err("%s: Xen refuses the processor that the guest sees (CPUID leaf %x/%x, MSR %x): %s: " REMEDY, d->guest, leaf, subleaf,
		       msr, strerror(errno));
		rc = -ENOEXEC;
	}
	if (!rc)
		rc = read_cpu(d, &here);
	return rc ? rc : compare(d, &there, &here);
}

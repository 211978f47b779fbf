// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * facts.h - what HELLO says of the running guest beyond its spec: which QEMU or Xen runs it, as which machine, or with
 * which frames of memory, from which kernel. "key=value\n" lines; unknown keys are ignored, so that later versions may say more.
 */
#ifndef FT_REPLICATOR_FACTS_H
#define FT_REPLICATOR_FACTS_H

#include "ft/attach.h"
#include "ft/diskserver.h"
#include "ft/spec.h"

#define FT_FACTS_MAX 1024

/* Facts of a guest of this host: @buf is at least FT_FACTS_MAX. */
int ft_facts_format(const struct ft_spec *spec, const struct ft_attach *at, char *buf, size_t size) FT_MUST_CHECK;
/*
 * Parse the peer's facts (hostile) into @theirs (memory; accel, machine, qemu_version, or xen_version and pages), and compare the
 * kernel and initrd with those of our own spec. -EPROTO, or -ENOEXEC with a line in @why.
 */
int ft_facts_check(const char *facts, const struct ft_spec *mine, struct ft_attach *theirs, char *why,
		   size_t size) FT_MUST_CHECK;

/* What its disks take: "disks=BYTES/USED,...", appended to @facts where it fits. */
void ft_facts_add_disks(const struct ft_attach *at, char *facts, size_t size);
/* How many the peer told of; @need is only filled in so far. Hostile: what makes no sense ends it. */
unsigned ft_facts_disks(const char *facts, struct ft_disk_need need[FT_DISKS_MAX]);

#endif

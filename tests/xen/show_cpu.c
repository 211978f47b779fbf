// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * show_cpu.c - give a domain that has not run the processor of a host that is not this one. For tests of checkpoint/xen_cpu.c.
 *
 *	show_cpu DOMID                  its own: taken
 *	show_cpu DOMID LEAF WORD BIT    its own but for that bit of CPUID: 0 to 3 are eax to edx
 *
 * Prints "taken" or "refused"; ft's own line of why is on stderr.
 */
#include "checkpoint/xen.h"

#include <stdio.h>

#define HEADER 16u                      /* as xen_cpu.c has it */
#define LEAF_LEN 24u

static int flip(struct ft_blob *cpu, uint32_t leaf, unsigned word, unsigned bit)
{
	uint32_t nr = ft_le32(cpu->data + 8);

	for (uint32_t i = 0; i < nr; i++) {
		uint8_t *at = cpu->data + HEADER + i * LEAF_LEN;

		if (ft_le32(at) != leaf || (ft_le32(at + 4) && ft_le32(at + 4) != UINT32_MAX))
			continue;
		ft_put32(at + 8 + 4 * word, ft_le32(at + 8 + 4 * word) ^ 1u << bit);
		return 0;
	}
	fprintf(stderr, "show_cpu: there is no leaf %x\n", leaf);
	return -ENOENT;
}

int main(int argc, char **argv)
{
	struct xen_dom d;
	struct ft_blob cpu = { 0 };
	int rc = argc == 2 || argc == 5 ? 0 : -EINVAL;

	if (rc) {
		fprintf(stderr, "usage: show_cpu DOMID [LEAF WORD BIT]\n");
		return 2;
	}
	rc = xen_dom_open(&d, "vm1", (uint32_t)atoi(argv[1]));
	if (!rc)
		rc = xen_cpu_save(&d, &cpu);
	if (!rc && argc == 5)
		rc = flip(&cpu, (uint32_t)strtoul(argv[2], NULL, 16), (unsigned)atoi(argv[3]) & 3, (unsigned)atoi(argv[4]) & 31);
	if (rc)
		return 2;
	printf("%s\n", xen_cpu_take(&d, &cpu) ? "refused" : "taken");
	ft_blob_free(&cpu);
	xen_dom_close(&d);
	return 0;
}

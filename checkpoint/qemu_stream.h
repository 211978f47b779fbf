// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * qemu_stream.h - the little of QEMU's migration format that ft has to understand.
 *
 * A replica is loaded from two pieces made by two commands: the firmware (`migrate` with x-ignore-shared, once a
 * session: RAM blocks outside guest RAM) and the state (`xen-save-devices-state`, one an epoch: vCPUs and devices).
 * Neither alone is a stream that brings a guest up; the RAM part of the first and the sections of the second are.
 *
 *   stream   "QEVM" u32:3, configuration (firmware only), sections, 0x00
 *   config   0x07 u32 n, n bytes machine; any number of 0x05 u8 n, n bytes name, u32 version, body
 *   section  u8 type, u32 id, START and FULL: u8 n, n bytes name, u32 instance, u32 version; body; 0x7e u32 id
 *   type     1 START, 2 PART, 3 END: RAM, its body is records; 4 FULL: a device, its body has no length
 *   record   u64 address | flags, and what the flags say follows; ends with EOS
 *
 * Numbers are big-endian. Both pieces come from a peer: nothing in here trusts them.
 */
#ifndef FT_QEMU_STREAM_H
#define FT_QEMU_STREAM_H

#include "ft/base.h"
#include <sys/uio.h>

#define FT_QEMU_FIRMWARE_MAX (64u << 20)        /* BIOS, UEFI, option ROMs, ACPI tables; no display */

/*
 * How many leading bytes of a migration stream are header, configuration and RAM, every record checked. A page of
 * @ram_block is refused: guest RAM comes with the epochs. -EPROTO, logged with the offset and what is wrong.
 */
int ft_qemu_stream_ram(const void *data, size_t len, const char *ram_block, size_t *end) FT_MUST_CHECK;
/* What `migrate-incoming` is to read, in two parts that borrow from the blobs. -EPROTO, logged. */
int ft_qemu_stream_splice(const struct ft_blob *firmware, const struct ft_blob *state, const char *ram_block,
			  struct iovec part[2]) FT_MUST_CHECK;

#endif

// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * xen_state.c - all of a domain but its memory, as one blob. See checkpoint/xen.h.
 *
 * The state of an epoch:  "ftxs" version32 tsc_mode32 tsc_khz32 tsc_incarnation32 tsc_elapsed64 context_len32 context
 * What is compared once:  "ftxp" version32 vcpus32 n32 { index32 value64 }... and what xen_cpu.c has
 * All little-endian. The context is Xen's own: vCPUs, local APICs, timers, MTRRs.
 */
#include "checkpoint/xen.h"

#include <inttypes.h>
#include <xen/hvm/params.h>

#define STATE_MAGIC 0x73787466u
#define PARAMS_MAGIC 0x70787466u
#define VERSION 1u
#define STATE_HEADER 32u
#define CONTEXT_MAX (16u << 20)

int xen_state_init(const struct xen_dom *d, struct xen_state_buf *b)
{
	int size = xc_domain_hvm_getcontext(d->xc, d->domid, NULL, 0);

	if (size <= 0 || (unsigned)size > CONTEXT_MAX) {
		ft_err("%s: the size of its vCPU state cannot be asked for: %s", d->guest, strerror(errno));
		return -EIO;
	}
	b->size = (uint32_t)size;
	b->context = malloc(b->size);
	return b->context ? 0 : -ENOMEM;
}

static void pack_tsc(uint8_t *to, uint32_t mode, uint32_t khz, uint32_t incarnation, uint64_t elapsed)
{
	ft_put32(to, mode);
	ft_put32(to + 4, khz);
	ft_put32(to + 8, incarnation);
	ft_put64(to + 12, elapsed);
}

int xen_state_save(const struct xen_dom *d, struct xen_state_buf *b, struct ft_blob *out)
{
	uint32_t mode, khz, incarnation;
	uint64_t elapsed;
	int len;

	*out = (struct ft_blob){ 0 };
	if (xc_domain_get_tsc_info(d->xc, d->domid, &mode, &elapsed, &khz, &incarnation))
		return -errno;
	len = xc_domain_hvm_getcontext(d->xc, d->domid, b->context, b->size);
	if (len <= 0) {
		ft_err("%s: its vCPU state cannot be read: %s", d->guest, strerror(errno));
		return -EIO;
	}
	*out = (struct ft_blob){ .data = malloc(STATE_HEADER + (size_t)len), .len = STATE_HEADER + (size_t)len };
	if (!out->data)
		return -ENOMEM;
	ft_put32(out->data, STATE_MAGIC);
	ft_put32(out->data + 4, VERSION);
	pack_tsc(out->data + 8, mode, khz, incarnation, elapsed);
	ft_put32(out->data + 28, (uint32_t)len);
	memcpy(out->data + STATE_HEADER, b->context, (size_t)len);
	return 0;
}

static bool is_state(const struct ft_blob *s)
{
	return s->len > STATE_HEADER && s->len <= STATE_HEADER + CONTEXT_MAX && ft_le32(s->data) == STATE_MAGIC &&
	       ft_le32(s->data + 4) == VERSION && ft_le32(s->data + 28) == s->len - STATE_HEADER;
}

int xen_state_load(const struct xen_dom *d, const struct ft_blob *state)
{
	const uint8_t *p = state->data;

	if (!is_state(state)) {
		ft_err("%s: what should be its vCPU state is none: both hosts need the same ft", d->guest);
		return -EPROTO;
	}
	if (xc_domain_set_tsc_info(d->xc, d->domid, ft_le32(p + 8), ft_le64(p + 20), ft_le32(p + 12),
				   ft_le32(p + 16))) {
		ft_err("%s: Xen refuses its TSC: %s", d->guest, strerror(errno));
		return -errno;
	}
	if (xc_domain_hvm_setcontext(d->xc, d->domid, (uint8_t *)(uintptr_t)p + STATE_HEADER, ft_le32(p + 28))) {
		ft_err("%s: Xen refuses its vCPU state: %s (xl dmesg says why)", d->guest, strerror(errno));
		return -errno;
	}
	return 0;
}

/* --- what both domains must have alike --- */

static const uint32_t params[] = {
	HVM_PARAM_STORE_PFN, HVM_PARAM_CONSOLE_PFN, HVM_PARAM_IOREQ_PFN, HVM_PARAM_BUFIOREQ_PFN, HVM_PARAM_STORE_EVTCHN,
	HVM_PARAM_CONSOLE_EVTCHN, HVM_PARAM_VM86_TSS_SIZED, HVM_PARAM_ACPI_IOPORTS_LOCATION, HVM_PARAM_VIRIDIAN,
	HVM_PARAM_IDENT_PT, HVM_PARAM_VM_GENERATION_ID_ADDR, HVM_PARAM_X87_FIP_WIDTH, HVM_PARAM_MCA_CAP,
};
/* Of these, what hvmloader sets; a replica's has not run. */
static const uint32_t firmware_params[] = {
	HVM_PARAM_VM86_TSS_SIZED, HVM_PARAM_ACPI_IOPORTS_LOCATION, HVM_PARAM_VM_GENERATION_ID_ADDR,
};
#define PARAMS_HEADER 16u
#define PARAM_LEN 12u
#define PARAMS_LEN (PARAMS_HEADER + FT_ARRAY_LEN(params) * PARAM_LEN)

static int own_params(const struct xen_dom *d, uint8_t out[PARAMS_LEN])
{
	xc_domaininfo_t info;
	int rc = xen_dom_info(d, &info);

	if (rc)
		return rc;
	ft_put32(out, PARAMS_MAGIC);
	ft_put32(out + 4, VERSION);
	ft_put32(out + 8, info.max_vcpu_id + 1);
	ft_put32(out + 12, FT_ARRAY_LEN(params));
	for (size_t i = 0; i < FT_ARRAY_LEN(params); i++) {
		uint8_t *at = out + PARAMS_HEADER + i * PARAM_LEN;
		uint64_t value = 0;

		if (xc_hvm_param_get(d->xc, d->domid, params[i], &value))
			ft_debug("%s: HVM parameter %u: %s", d->guest, params[i], strerror(errno));
		ft_put32(at, params[i]);
		ft_put64(at + 4, value);
	}
	return 0;
}

int xen_params_save(const struct xen_dom *d, struct ft_blob *out)
{
	uint8_t ours[PARAMS_LEN];
	struct ft_blob cpu = { 0 };
	size_t len = PARAMS_LEN;
	int rc = own_params(d, ours);

	*out = (struct ft_blob){ 0 };
	if (!rc)
		rc = xen_cpu_save(d, &cpu);
	if (rc)
		return rc;
	len += cpu.len;
	*out = (struct ft_blob){ .data = malloc(len), .len = len };
	if (out->data) {
		memcpy(out->data, ours, sizeof(ours));
		memcpy(out->data + sizeof(ours), cpu.data, cpu.len);
	}
	ft_blob_free(&cpu);
	return out->data ? 0 : -ENOMEM;
}

static bool is_firmwares(uint32_t param)
{
	for (size_t i = 0; i < FT_ARRAY_LEN(firmware_params); i++)
		if (param == firmware_params[i])
			return true;
	return false;
}

int xen_params_check(const struct xen_dom *d, const struct ft_blob *theirs)
{
	uint8_t ours[PARAMS_LEN];
	int rc = own_params(d, ours);

	if (rc)
		return rc;
	if (theirs->len < PARAMS_LEN || memcmp(theirs->data, ours, PARAMS_HEADER)) {
		ft_err("%s: the domain here and the guest's are not built alike: both hosts need the same Xen and the same ft",
		       d->guest);
		rc = -ENOEXEC;
	}
	for (size_t i = 0; i < FT_ARRAY_LEN(params) && !rc; i++) {
		size_t at = PARAMS_HEADER + i * PARAM_LEN;

		if (!memcmp(ours + at, theirs->data + at, PARAM_LEN))
			continue;
		if (ft_le32(theirs->data + at) == params[i] && is_firmwares(params[i]) && !ft_le64(ours + at + 4))
			continue;
		ft_err("%s: HVM parameter %u is %" PRIx64 " here and %" PRIx64 " there: both hosts need the same Xen",
		       d->guest, params[i], ft_le64(ours + at + 4), ft_le64(theirs->data + at + 4));
		rc = -ENOEXEC;
	}
	return rc;
}

struct ft_blob xen_params_cpu(const struct ft_blob *theirs)
{
	return (struct ft_blob){ .data = theirs->data + PARAMS_LEN, .len = theirs->len - PARAMS_LEN };
}

int xen_params_take(const struct xen_dom *d, const struct ft_blob *theirs)
{
	for (size_t i = 0; i < FT_ARRAY_LEN(params); i++) {
		uint64_t value = ft_le64(theirs->data + PARAMS_HEADER + i * PARAM_LEN + 4);

		if (!is_firmwares(params[i]) || !value || !xc_hvm_param_set(d->xc, d->domid, params[i], value))
			continue;
		ft_err("%s: Xen refuses %" PRIx64 " as HVM parameter %u: %s", d->guest, value, params[i], strerror(errno));
		return -EIO;
	}
	return 0;
}

bool xen_params_booted(const struct xen_dom *d)
{
	uint64_t value = 0;

	return !xc_hvm_param_get(d->xc, d->domid, HVM_PARAM_ACPI_IOPORTS_LOCATION, &value) && value;
}

// SPDX-License-Identifier: GPL-3.0-or-later
/* xen_parts.c - see xen_parts.h. */
#include "checkpoint/xen_parts.h"

#define MAGIC 0x6d787466u
#define VERSION 1u
#define HEADER 16u
#define MODEL_MIN 9u                    /* QEMU's magic and version, and its end */

int xen_parts_join(const struct ft_blob *domain, const struct ft_blob *model, struct ft_blob *out)
{
	*out = (struct ft_blob){ 0 };
	if (domain->len > UINT32_MAX || model->len > XEN_MODEL_MAX)
		return -EMSGSIZE;
	*out = (struct ft_blob){ .len = HEADER + domain->len + model->len };
	out->data = malloc(out->len);
	if (!out->data)
		return -ENOMEM;
	ft_put32(out->data, MAGIC);
	ft_put32(out->data + 4, VERSION);
	ft_put32(out->data + 8, (uint32_t)domain->len);
	ft_put32(out->data + 12, (uint32_t)model->len);
	memcpy(out->data + HEADER, domain->data, domain->len);
	memcpy(out->data + HEADER + domain->len, model->data, model->len);
	return 0;
}

int xen_parts_split(const struct ft_blob *whole, struct ft_blob *domain, struct ft_blob *model)
{
	static const uint8_t qemu[] = { 'Q', 'E', 'V', 'M', 0, 0, 0, 3 };
	const uint8_t *p = whole->data;
	uint64_t domain_len, model_len;

	if (whole->len < HEADER || ft_le32(p) != MAGIC || ft_le32(p + 4) != VERSION)
		return -EPROTO;
	domain_len = ft_le32(p + 8);
	model_len = ft_le32(p + 12);
	if (!domain_len || model_len < MODEL_MIN || model_len > XEN_MODEL_MAX ||
	    domain_len + model_len != whole->len - HEADER)
		return -EPROTO;
	*domain = (struct ft_blob){ .data = whole->data + HEADER, .len = domain_len };
	*model = (struct ft_blob){ .data = domain->data + domain_len, .len = model_len };
	return memcmp(model->data, qemu, sizeof(qemu)) ? -EPROTO : 0;
}

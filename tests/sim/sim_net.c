// SPDX-License-Identifier: GPL-3.0-or-later
/* sim_net.c - one connection between the hosts, and what happens to it. */
#include "sim_world.h"

/* --- the network --- */

static FILE *capture;

void sim_capture(FILE *f)
{
	capture = f;
}

void sim_capture_connection(void)
{
	if (capture)
		fputc('C', capture);
}

static void capture_record(char mark, uint32_t type, const void *body, size_t len)
{
	uint8_t header[9] = { (uint8_t)mark };

	ft_put32(header + 1, type);
	ft_put32(header + 5, (uint32_t)len);
	if (fwrite(header, sizeof(header), 1, capture) != 1 || (len && fwrite(body, len, 1, capture) != 1))
		abort();
}

void sim_wire_clear(struct wire *w)
{
	while (w->first) {
		struct message *m = w->first;

		w->first = m->next;
		free(m->body);
		free(m);
	}
	*w = (struct wire){ .last = &w->first };
}

uint64_t sim_delay(struct sim *s)
{
	uint64_t ns = 200000 + sim_rnd(s, 1500000);

	return sim_rnd(s, 200) ? ns : ns + sim_rnd(s, 60) * FT_MS_NS;
}

void sim_transmit(struct sim *s, struct wire *w, event_fn *pump, uint32_t type, const void *body, size_t len)
{
	struct message *m = calloc(1, sizeof(*m));

	if (!m)
		abort();
	if (capture)
		capture_record(w == &s->to_b ? '>' : '<', type, body, len);
	m->type = type;
	m->len = len;
	m->body = malloc(len + 1);
	memcpy(m->body, body ? body : "", len);
	m->at = s->now + sim_delay(s);
	if (m->at < w->last_at)
		m->at = w->last_at;
	w->last_at = m->at;
	*w->last = m;
	w->last = &m->next;
	if (!w->pumping) {
		w->pumping = true;
		sim_after(s, m->at - s->now, pump, s->conn_id);
	}
}

static void pump(struct sim *s, struct wire *w, bool cut, struct proc *to, event_fn *self,
		 void (*deliver)(struct sim *, uint32_t, const uint8_t *, size_t), uint64_t id)
{
	struct message *m;

	if (id != s->conn_id || !s->conn)
		return;
	if (cut) {
		sim_after(s, 15 * FT_MS_NS, self, id);      /* TCP tries again */
		return;
	}
	if (!sim_awake(s, to, self, id))
		return;
	while ((m = w->first) && m->at <= s->now && id == s->conn_id && s->conn && to->stalled_until <= s->now) {
		w->first = m->next;
		if (!w->first)
			w->last = &w->first;
		deliver(s, m->type, m->body, m->len);
		free(m->body);
		free(m);
	}
	if (id != s->conn_id || !s->conn)
		return;
	w->pumping = w->first != NULL;
	if (w->first)
		sim_after(s, w->first->at > s->now ? w->first->at - s->now : 0, self, id);
}

void sim_pump_to_a(struct sim *s, uint64_t id)
{
	pump(s, &s->to_a, s->cut_ba, &s->a, sim_pump_to_a, sim_alpha_record, id);
}

void sim_pump_to_b(struct sim *s, uint64_t id)
{
	pump(s, &s->to_b, s->cut_ab, &s->b, sim_pump_to_b, sim_beta_record, id);
}


/* The connection is gone; each side learns of it in its own time. */
void sim_conn_break(struct sim *s, uint64_t a_ns, uint64_t b_ns)
{
	if (!s->conn)
		return;
	s->conn = false;
	sim_wire_clear(&s->to_a);
	sim_wire_clear(&s->to_b);
	sim_after(s, a_ns, sim_a_link_down, s->conn_id);
	sim_after(s, b_ns, sim_b_link_down, s->conn_id);
}

// SPDX-License-Identifier: GPL-3.0-or-later
/* hook.h - run the configured command at a change of state; nobody waits for it. */
#ifndef FT_REPLICATOR_HOOK_H
#define FT_REPLICATOR_HOOK_H

/*
 * Run @command (an absolute path; NULL or empty: none) with a clean environment plus FT_GUEST, FT_ROLE,
 * FT_STATE, FT_WAS and FT_WHY. Failures are logged and harmless; children are reaped by the kernel.
 */
void ft_hook_run(const char *command, const char *guest, const char *role, const char *state, const char *was,
		 const char *why);

#endif

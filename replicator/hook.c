// SPDX-License-Identifier: GPL-3.0-or-later
/* hook.c - see hook.h. */
#include "hook.h"

#include "ft/base.h"
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static void child(const char *command, char *const env[])
{
	char *const argv[] = { (char *)command, NULL };

	/* Twice forked: init reaps it, and no signal meant for us reaches it. */
	setsid();
	ft_priority_default();
	if (fork())
		_exit(0);
	for (int fd = 3; fd < 1024; fd++)
		close(fd);
	execve(command, argv, env);
	_exit(127);
}

void ft_hook_run(const char *command, const char *guest, const char *role, const char *state, const char *was,
		 const char *why)
{
	const char *const key[] = { "FT_GUEST", "FT_ROLE", "FT_STATE", "FT_WAS", "FT_WHY" };
	const char *const value[] = { guest, role, state, was, why };
	char path[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin", text[5][512], *env[7] = { path };
	pid_t pid;

	if (!command || !*command)
		return;
	for (size_t i = 0; i < FT_ARRAY_LEN(key); i++) {
		snprintf(text[i], sizeof(text[i]), "%s=%s", key[i], value[i] ? value[i] : "");
		env[i + 1] = text[i];
	}
	pid = fork();
	if (pid == 0)
		child(command, env);
	if (pid < 0)
		ft_warn("hook %s was not run: %s", command, strerror(errno));
	while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
}

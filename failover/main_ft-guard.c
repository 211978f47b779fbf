// SPDX-License-Identifier: GPL-3.0-or-later
/* main_ft-guard.c - the program ft-guard; see ft/guard.h. */
#include "ft/guard.h"

int main(int argc, char **argv)
{
	return ft_guard_main(argc, argv);
}

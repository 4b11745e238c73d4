/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the kernel's headers need of BPF, so that they compile as ordinary C.  Included before any of them. */
#ifndef XLB_NATIVE_H
#define XLB_NATIVE_H

#include <linux/types.h>

/* The kernel's helper calls through a pointer; a direct call keeps the callback's own type, which UBSan minds. */
#define bpf_loop(count, step, context, flags)                                   \
	({                                                                      \
		__u32 xlb_loop_i;                                               \
		for (xlb_loop_i = 0; xlb_loop_i < (__u32)(count); xlb_loop_i++) \
			if (step(xlb_loop_i, context))                          \
				break;                                          \
		(void)(flags);                                                  \
		(long)xlb_loop_i;                                               \
	})

/* xlb_at_most is BPF assembly.  Under another name nothing calls it, so that assembly is never emitted. */
#define xlb_at_most xlb_at_most_in_bpf
#include "xlb_scratch.h"
#undef xlb_at_most

/* How often an offset in the buffer had to be cut: the verifier wants the limit, no message may reach it. */
static __u64 xlb_native_cut;

static inline __u64 xlb_at_most(__u64 value, __u32 most)
{
	if (value <= most)
		return value;
	if (most == XLB_MAX_HEAD)
		xlb_native_cut++;
	return most;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The parts of the data path that need no socket, as programs which BPF_PROG_TEST_RUN can run (it takes no sk_msg).
 * The test writes the bytes into xlb_test_scratch by mmap, runs a program, and reads there what became of them. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

#include "xlb_types.h"
#include "xlb_reasons.h"
#include "xlb_scratch.h"
#include "xlb_head.h"
#include "xlb_match.h"
#include "xlb_frame.h"

/* The context of all programs here; what a program does not need it does not read. */
struct xlb_test {
	__u32 slot;   /* in xlb_test_images */
	__u32 random; /* for weighted clusters */
	__u32 len;    /* bytes of the piece */
	__u32 response;
	__u32 head_request;
	__u32 repeat;	/* of the measurement */
	__u32 consumed; /* out: of the piece */
	__u32 pad;
	__u64 skip;		      /* in: bytes that follow the piece; out: how many of them were skipped */
	__u64 ns;		      /* out: of all runs together */
	struct xlb_decision decision; /* out */
};

/* One value; the test writes buf, size and seed, and reads head and line. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xlb_scratch);
} xlb_test_scratch SEC(".maps");

/* One value; the test sets it to where a message begins. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xlb_frame);
} xlb_test_framer SEC(".maps");

struct xlb_test_image {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_INNER_MAP | BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__uint(value_size, XLB_CELL);
};

/* Slot -> image; the test makes the inner maps, as the agent does for xlb_images. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct xlb_test_image);
} xlb_test_images SEC(".maps");

static __always_inline struct xlb_scratch *xlb_test_memory(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&xlb_test_scratch, &zero);
}

SEC("syscall")
int xlb_test_head(struct xlb_test *test)
{
	struct xlb_scratch *s = xlb_test_memory();

	if (!s)
		return -1;
	return xlb_parse_head(s);
}

/* What xlb_test_head has read, over an image. */
SEC("syscall")
int xlb_test_match(struct xlb_test *test)
{
	struct xlb_scratch *s = xlb_test_memory();
	struct xlb_decision decision;
	__u32 slot = test->slot;
	void *image = bpf_map_lookup_elem(&xlb_test_images, &slot);

	if (!s || !image)
		return -1;
	xlb_match(image, s, test->random, &decision);
	test->decision = decision;
	return 0;
}

SEC("syscall")
int xlb_test_frame(struct xlb_test *test)
{
	struct xlb_scratch *s = xlb_test_memory();
	__u32 zero = 0;
	struct xlb_frame *f = bpf_map_lookup_elem(&xlb_test_framer, &zero);

	if (!s || !f)
		return -1;
	test->consumed = xlb_frame_feed(f, s->buf, test->len, test->response, test->head_request);
	if (test->skip)
		test->skip = xlb_frame_skip(f, test->skip);
	return 0;
}

/* ---- measurements: many runs, without what a system call costs --------------------------------------------------- */
struct xlb_test_loop {
	struct xlb_scratch *s;
	struct xlb_frame *f;
	void *image;
	__u32 len;
};

static long xlb_test_head_again(__u32 i, struct xlb_test_loop *loop)
{
	xlb_parse_head(loop->s);
	return 0;
}

SEC("syscall")
int xlb_test_head_ns(struct xlb_test *test)
{
	struct xlb_test_loop loop = { xlb_test_memory() };

	if (!loop.s)
		return -1;
	test->ns = bpf_ktime_get_ns();
	bpf_loop(test->repeat, xlb_test_head_again, &loop, 0);
	test->ns = bpf_ktime_get_ns() - test->ns;
	return 0;
}

static long xlb_test_match_again(__u32 i, struct xlb_test_loop *loop)
{
	struct xlb_decision decision;

	xlb_match(loop->image, loop->s, i, &decision);
	return 0;
}

SEC("syscall")
int xlb_test_match_ns(struct xlb_test *test)
{
	struct xlb_test_loop loop = { xlb_test_memory() };
	__u32 slot = test->slot;

	loop.image = bpf_map_lookup_elem(&xlb_test_images, &slot);
	if (!loop.s || !loop.image)
		return -1;
	test->ns = bpf_ktime_get_ns();
	bpf_loop(test->repeat, xlb_test_match_again, &loop, 0);
	test->ns = bpf_ktime_get_ns() - test->ns;
	return 0;
}

static long xlb_test_frame_again(__u32 i, struct xlb_test_loop *loop)
{
	__builtin_memset(loop->f, 0, sizeof(*loop->f));
	xlb_frame_feed(loop->f, loop->s->buf, loop->len, 1, 0);
	return 0;
}

SEC("syscall")
int xlb_test_frame_ns(struct xlb_test *test)
{
	struct xlb_test_loop loop = { xlb_test_memory() };
	__u32 zero = 0;

	loop.f = bpf_map_lookup_elem(&xlb_test_framer, &zero);
	loop.len = test->len;
	if (!loop.s || !loop.f)
		return -1;
	test->ns = bpf_ktime_get_ns();
	bpf_loop(test->repeat, xlb_test_frame_again, &loop, 0);
	test->ns = bpf_ktime_get_ns() - test->ns;
	return 0;
}

char xlb_test_license[] SEC("license") = "Dual BSD/GPL";

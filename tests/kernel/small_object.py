"""A small object with a map and a program of each kind, compiled when it is needed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bpf.build import GENERATED, BuildError, compile_object

SMALL = """
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include "xlb_types.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define MAP(name, kind, entries, k, v)                      \\
	struct {                                            \\
		__uint(type, kind);                         \\
		__uint(max_entries, entries);               \\
		__type(key, k);                             \\
		__type(value, v);                           \\
	} name SEC(".maps")

MAP(xlb_config, BPF_MAP_TYPE_ARRAY, 1, __u32, struct xlb_config);
MAP(xlb_sockets, BPF_MAP_TYPE_SOCKHASH, 64, __u64, __u64);
MAP(xlb_numbers, BPF_MAP_TYPE_HASH, 10000, __u64, __u32);
MAP(xlb_per_cpu, BPF_MAP_TYPE_PERCPU_ARRAY, 4, __u32, __u32);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1000);
	__type(key, __u32);
	__type(value, __u64);
} xlb_mapped SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} xlb_stored SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} xlb_events SEC(".maps");

struct xlb_image {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_INNER_MAP | BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, XLB_CELL);
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, XLB_MAX_IMAGES);
	__type(key, __u32);
	__array(values, struct xlb_image);
} xlb_images SEC(".maps");

struct xlb_pool {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, XLB_POOL_DEPTH);
	__uint(value_size, sizeof(__u64));
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, XLB_MAX_POOLS);
	__type(key, __u32);
	__array(values, struct xlb_pool);
} xlb_pools SEC(".maps");

SEC("cgroup/connect4")
int xlb_connect4(struct bpf_sock_addr *address)
{
	return 1;
}

SEC("sockops")
int xlb_sockops(struct bpf_sock_ops *operation)
{
	return 1;
}

SEC("sk_msg")
int xlb_msg(struct sk_msg_md *message)
{
	return SK_PASS;
}

/* An event for each run, and a discarded one before it if flags says so. */
SEC("syscall")
int xlb_control(struct xlb_request *r)
{
	struct xlb_event event = { .type = r->op, .arg = r->arg };
	__u32 key = 1, *count = bpf_map_lookup_elem(&xlb_per_cpu, &key);
	void *unwanted;

	if (count)
		*count += 1;
	if (r->flags) {
		unwanted = bpf_ringbuf_reserve(&xlb_events, 16, 0);
		if (unwanted)
			bpf_ringbuf_discard(unwanted, 0);
	}
	r->arg += 7;
	return bpf_ringbuf_output(&xlb_events, &event, sizeof(event), 0);
}
"""
# A type of program that can be run on data, and that the loader refuses: it does not know what to attach it to.
WITH_DATA = (
    SMALL
    + """
SEC("tc")
int xlb_data(struct __sk_buff *skb)
{
	__u8 first = 0;

	bpf_skb_load_bytes(skb, 0, &first, 1);
	first += 1;
	bpf_skb_store_bytes(skb, 0, &first, 1, 0);
	return first;
}
"""
)
REFUSED = SMALL.replace("r->arg += 7;", "r->arg = *(__u32 *)(long)r->client;")


def compile_small(folder: Path, name: str, source: str) -> Path:
    """The object; skips the test where it cannot be compiled."""
    if shutil.which("clang-19") is None or not (GENERATED / "vmlinux.h").exists():
        pytest.skip("needs clang-19 and bpf/build/include: make build")
    written = folder / f"{name}.bpf.c"
    written.write_text(source)
    try:
        compile_object(written, folder / f"{name}.bpf.o")
    except BuildError as error:
        pytest.fail(str(error))
    return folder / f"{name}.bpf.o"

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every map of the data path.  "Owner" is who removes an entry; sizes are for one node. */
#ifndef XLB_MAPS_H
#define XLB_MAPS_H

#include "xlb_types.h"
#include "xlb_scratch.h"

/* cgroup id -> view.  Written by the agent (`xlb exec`, end of a workload), read by the connect hooks. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct xlb_workload);
} xlb_workloads SEC(".maps");

/* (workload, port) -> what is bypassed, excluded and included.  Written by the agent, read by the connect hooks. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct xlb_switch_key);
	__type(value, __u32);
} xlb_switches SEC(".maps");

/* (workload, address prefix) -> enum xlb_range.  The same. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct xlb_range_key);
	__type(value, __u32);
} xlb_ranges SEC(".maps");

struct xlb_captures_of_view {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	/* Sizes, not types: behind two pointers clang leaves only a declaration of them in BTF. */
	__uint(key_size, sizeof(struct xlb_capture_key));
	__uint(value_size, sizeof(struct xlb_capture));
};

/* view -> what is captured for it.  Inner maps and slots by the agent; read by the connect hooks and the keeper. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, XLB_MAX_VIEWS);
	__type(key, __u32);
	__array(values, struct xlb_captures_of_view);
} xlb_captures SEC(".maps");

struct xlb_image {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_INNER_MAP | BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, XLB_CELL);
};

/* slot -> image of one route configuration of one view.  Inner maps and slots by the agent; read per request. */
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

/* pool -> its idle Bs, the last used on top.  Inner maps by the agent and (the last XLB_DESTINATIONS) the loader. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, XLB_MAX_POOLS);
	__type(key, __u32);
	__array(values, struct xlb_pool);
} xlb_pools SEC(".maps");

/* pool -> address.  Not read by the programs: it tells the keeper what to connect to. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, XLB_MAX_POOLS);
	__type(key, __u32);
	__type(value, struct xlb_endpoint);
} xlb_endpoints SEC(".maps");

/* pool -> requests in flight and flags. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, XLB_MAX_POOLS);
	__type(key, __u32);
	__type(value, struct xlb_pool_state);
} xlb_pool_state SEC(".maps");

/* cursors of round robin, by xlb_cluster.rr. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, XLB_MAX_POOLS);
	__type(key, __u32);
	__type(value, __u32);
} xlb_round_robin SEC(".maps");

/* cookie -> state of a connection.  At 10,000 clients some 25,000 entries of 250 bytes, paid as they come. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, __u64);
	__type(value, struct xlb_conn);
} xlb_conns SEC(".maps");

/* 4-tuple of the connecting side -> its cookie.  Lives as long as that connection (sockops, at its close). */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct xlb_pair_key);
	__type(value, __u64);
} xlb_pairs SEC(".maps");

/* cookie -> socket, for redirects: C, B and X.  The kernel removes a socket when it closes. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 131072);
	__type(key, __u64);
	__type(value, __u64);
} xlb_sockets SEC(".maps");

/* What a socket is; freed with the socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct xlb_own);
} xlb_sockets_own SEC(".maps");

/* (view, original destination) -> pool of connections to Envoy; written by the keeper. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, XLB_DESTINATIONS);
	__type(key, struct xlb_destination);
	__type(value, __u32);
} xlb_destinations SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xlb_shared);
} xlb_shared SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xlb_config);
} xlb_config SEC(".maps");

/* view * XLB_MAX_REASONS + reason -> requests. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, XLB_MAX_VIEWS *XLB_MAX_REASONS);
	__type(key, __u32);
	__type(value, __u64);
} xlb_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} xlb_events SEC(".maps");

/* Work space.  A program may be preempted by another on the same CPU, so there are several: see xlb_take_scratch. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct xlb_scratch);
} xlb_scratch SEC(".maps");

#endif

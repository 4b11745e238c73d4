/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every layout that the kernel programs share with user space: the one place where they are written.  User space
 * reads them from the BTF of the compiled object (bpf/layout.py), so nothing here is repeated in Python. */
#ifndef XLB_TYPES_H
#define XLB_TYPES_H

#ifndef __VMLINUX_H__
#include <linux/types.h>
#endif

/* ---- limits -------------------------------------------------------------------------------------------------- */
enum {
	XLB_CELL = 64,		  /* bytes of one image cell: a cache line */
	XLB_MAX_HEAD = 8192,	  /* bytes of a request head that the kernel reads; longer goes to Envoy */
	XLB_MAX_HEADERS = 64,	  /* lines of a request head */
	XLB_MAX_SLOTS = 32,	  /* distinct header names one image may look at, slot 0 is :method */
	XLB_MAX_CANDIDATES = 64,  /* routes walked for one path */
	XLB_MAX_PREDICATES = 8,	  /* header predicates of one route */
	XLB_MAX_LENGTHS = 31,	  /* distinct lengths of path prefixes (or host wildcards) in one scope */
	XLB_MAX_KEY = 488,	  /* bytes of a host or path literal: 40 + 7 * 64 */
	XLB_MAX_VALUE = 240,	  /* bytes of a predicate's value: 48 + 3 * 64 */
	XLB_MAX_PROBES = 8,	  /* cells looked at for one key; the builder keeps to it */
	XLB_MAX_WEIGHTED = 64,	  /* weighted clusters of one route */
	XLB_MAX_ENDPOINTS = 4096, /* of one cluster */
	XLB_MAX_POOLS = 16384,
	XLB_MAX_IMAGES = 4096,
	XLB_MAX_VIEWS = 1024,
	XLB_MAX_REASONS = 256,	/* counters of one view, indexed by enum xlb_reason */
	XLB_POOL_DEPTH = 512,	/* idle connections one pool can hold */
	XLB_DESTINATIONS = 256, /* the last pools belong to the keeper: connections to Envoy, one pool for each
				 * (view, original destination) */
	XLB_LAYOUT_VERSION = 1, /* of all pinned maps: an agent or keeper must not take over maps of another one */
};

/* ---- the image: one route configuration of one view, as an array of 64-byte cells ------------------------------
 * Inner map of xlb_images: BPF_MAP_TYPE_ARRAY, value_size 64, BPF_F_INNER_MAP (sizes may differ) | BPF_F_MMAPABLE.
 * Cell 0 is the header.  "Cell number" below means an index in this array; 0 means "none". */
#define XLB_IMAGE_MAGIC 0x42584c31u

enum xlb_image_flags {
	XLB_IMAGE_IGNORE_PORT = 1, /* ignore_port_in_host_matching */
	XLB_IMAGE_ANY_HOST = 2,	   /* the only virtual host is "*": Host is not read for the choice */
};

struct xlb_image_header {
	__u32 magic;
	__u32 cells; /* of the whole image */
	__u64 generation;
	__u64 seed;	     /* start value of every hash */
	__u32 table;	     /* first cell of the hash table */
	__u32 table_mask;    /* cells of the hash table - 1 (a power of two) */
	__u32 default_vhost; /* cell of the virtual host of "*" */
	__u32 suffix_lens; /* cell of struct xlb_lengths: lengths of "*suffix" domains (without the "*"), descending */
	__u32 prefix_lens; /* the same for "prefix*" domains */
	__u16 reason;	   /* not 0: everything goes to Envoy, for this reason */
	__u16 flags;
	__u32 header_names; /* how many header slots are in use, :method not counted; 0: no names to look up */
	__u32 pad[3];
};

struct xlb_lengths {
	__u16 n;
	__u16 len[XLB_MAX_LENGTHS];
};

enum xlb_key_kind {
	XLB_KEY_FREE = 0,
	XLB_KEY_HOST_EXACT,  /* scope 0; value: cell of a virtual host */
	XLB_KEY_HOST_SUFFIX, /* scope 0; text without "*", reversed byte by byte */
	XLB_KEY_HOST_PREFIX, /* scope 0; text without "*" */
	XLB_KEY_PATH_EXACT,  /* scope: xlb_vhost.index; value: cell of a candidate list */
	XLB_KEY_PATH_PREFIX, /* the same */
	XLB_KEY_HEADER_NAME, /* scope 0; lower-case name; value: slot, 1 .. XLB_MAX_SLOTS - 1 */
};

/* Hash-table entry.  hash = xlb_hash_end(FNV-1a 64 over the text starting from seed, kind, scope); bucket =
 * (hash >> 32) & table_mask, linear probing, at most XLB_MAX_PROBES; a free cell ends the search.
 *   xlb_hash_end(h, kind, scope) = (h ^ ((u64)scope << 8 | kind)) * 0x9E3779B97F4A7C15
 *   FNV-1a step: h = (h ^ byte) * 0x100000001b3 */
struct xlb_key {
	__u64 hash;
	__u32 scope;
	__u32 value;
	__u32 more; /* first of the consecutive cells that hold text[40:] */
	__u16 len;
	__u8 kind;
	__u8 pad;
	__u8 text[40]; /* zero-padded */
};

struct xlb_vhost {
	__u32 index;	 /* in the route configuration */
	__u32 any_list;	 /* cell of the candidates for a path that no exact or prefix key matches; 0: none match */
	__u32 has_exact; /* 1: there are XLB_KEY_PATH_EXACT keys in this scope */
	__u16 reason;	 /* not 0: Envoy */
	__u16 pad;
	__u32 lens; /* cell of struct xlb_lengths: path prefix lengths, descending */
	__u32 pad2[11];
};

/* A candidate list is an array of __u32 over consecutive cells: [0] = n, then n cells of routes in Envoy's order:
 * all routes whose path matcher accepts the key (for a prefix key: routes with that prefix or a prefix of it) and all
 * routes whose match the kernel cannot decide.  It ends after the first route that takes every request. */
struct xlb_list {
	__u32 word[16]; /* one cell of it */
};

enum xlb_route_flags {
	XLB_ROUTE_UNDECIDED = 1, /* the kernel cannot tell whether it matches: stop here, Envoy, reason */
};

struct xlb_route {
	__u32 index;  /* RouteRule.index */
	__u16 reason; /* not 0: Envoy carries it out */
	__u8 flags;
	__u8 predicates; /* how many */
	__u32 predicate; /* first cell of struct xlb_predicate, consecutive */
	__u32 clusters;	 /* how many; 1: `cluster` is the only one */
	__u32 cluster;	 /* cell of struct xlb_cluster, or first cell of struct xlb_weighted */
	__u32 weight_sum;
	__u32 pad[10];
};

struct xlb_weighted { /* one cell: 8 of them; cumulative ascending, the last equals weight_sum */
	struct {
		__u32 cumulative;
		__u32 cluster;
	} entry[8];
};

enum xlb_predicate_kind {
	XLB_PRED_EXACT = 1,
	XLB_PRED_PRESENT,
};

struct xlb_predicate {
	__u8 kind;
	__u8 invert; /* only with PRESENT: the header must be absent */
	__u8 slot;   /* 0: the method */
	__u8 pad;
	__u16 len;
	__u16 pad2;
	__u32 more; /* first of the consecutive cells that hold text[48:] */
	__u32 pad3;
	__u8 text[48];
};

enum xlb_lb {
	XLB_LB_ROUND_ROBIN = 0,
	XLB_LB_RANDOM = 1,
	XLB_LB_LEAST_REQUEST = 2,
};

struct xlb_cluster {
	__u32 index;  /* position in the sorted cluster names of the image: what the kernel reports */
	__u16 reason; /* not 0: Envoy */
	__u8 lb;      /* enum xlb_lb */
	__u8 pad;
	__u32 endpoints; /* how many */
	__u32 pools;	 /* first cell of the pool numbers: __u32, 16 a cell (struct xlb_list without a count) */
	__u32 rr;	 /* index in xlb_round_robin, stable over images */
	__u32 pad2[11];
};

/* ---- capture -------------------------------------------------------------------------------------------------- */
struct xlb_address { /* IPv4 as ::ffff:a.b.c.d, network byte order */
	__u8 b[16];
};

/* Key of the inner maps of xlb_captures (hash, one per view).  Looked up as (address, port), (any, port), (any, 0);
 * "any" is ::ffff:0.0.0.0 for IPv4 and :: for IPv6. */
struct xlb_capture_key {
	struct xlb_address address;
	__u16 port; /* host byte order */
	__u16 pad[3];
};

enum xlb_capture_kind {
	XLB_CAPTURE_NONE = 0,  /* leave the connection alone: shadows a wildcard */
	XLB_CAPTURE_MIXED = 1, /* to the keeper: kernel and Envoy may take turns */
	XLB_CAPTURE_ENVOY = 2, /* straight to the view's Envoy listener */
};

struct xlb_capture {
	__u32 kind;
	__u32 image;			  /* slot in xlb_images (MIXED) */
	struct xlb_address envoy_address; /* the view's Envoy listener */
	__u16 envoy_port;		  /* host byte order */
	__u16 reason;			  /* why ENVOY, for counters; else 0 */
	__u32 pad;
};

/* Value of xlb_workloads, key: cgroup id (__u64). */
struct xlb_workload {
	__u32 view; /* index in xlb_captures */
	__u32 id;
};

/* ---- switches: what of that is not captured all the same ---------------------------------------------------------
 * Key of xlb_switches, value: __u32 of enum xlb_switch.  For a captured connection they are asked for (workload, port),
 * (workload, 0) and (0, port), workload being xlb_workload.id, and only while xlb_shared.switches is not 0. */
struct xlb_switch_key {
	__u32 workload; /* 0: all */
	__u32 port;	/* host byte order; 0: all */
};

enum xlb_switch {
	XLB_SWITCH_DIRECT = 1, /* `xlb bypass`: to where the application says; the closest of the three entries wins */
	XLB_SWITCH_ENVOY = 2,  /* `xlb bypass --to envoy`: as XLB_CAPTURE_ENVOY */
	XLB_SWITCH_EXCLUDED = 4, /* an annotation of the workload: to where the application says, before all else */
	XLB_SWITCH_INCLUDED = 8, /* (workload, port): captured although no range includes the address */
	XLB_SWITCH_RANGES = 16,	 /* (workload, 0): xlb_ranges tells by the address */
};

/* Key of xlb_ranges (LPM trie), value: __u32 of enum xlb_range.  A workload in it has an entry for any address. */
struct xlb_range_key {
	__u32 bits; /* 32 for the workload, and those of the address */
	__u32 workload;
	struct xlb_address address;
};

enum xlb_range {
	XLB_RANGE_EXCLUDED = 0,
	XLB_RANGE_NEITHER = 1, /* captured where the port is included */
	XLB_RANGE_INCLUDED = 2,
};

/* The one value of xlb_config, written by the agent (keeper_*: by the keeper). */
struct xlb_config {
	__u32 layout;			   /* XLB_LAYOUT_VERSION */
	__u32 cgroup_level;		   /* of workloads, for bpf_get_current_ancestor_cgroup_id */
	struct xlb_address keeper_address; /* IPv4-mapped; its listener in every network namespace */
	__u16 keeper_port;		   /* host byte order; 0: no keeper, capture nothing */
	__u16 keeper_port6;		   /* the listener on ::1, for AF_INET6 clients of IPv6 destinations; 0: none */
	__u32 response_limit; /* bytes in a client's receive queue from which responses spill to the keeper */
	__u32 upload_limit;   /* bytes in a backend's receive queue from which a request body spills */
	__u32 cork_limit;     /* bytes of an unfinished request head held back; 0: split heads are relayed */
};

/* ---- sockets --------------------------------------------------------------------------------------------------- */
enum xlb_role {
	XLB_ROLE_NONE = 0,
	XLB_ROLE_C,	 /* the client application's socket, captured to the keeper */
	XLB_ROLE_U,	 /* the keeper's pooled upstream connection, to a backend or to Envoy */
	XLB_ROLE_B,	 /* its accepted side in a backend (or in Envoy) */
	XLB_ROLE_X,	 /* the keeper's injector: what it writes appears in the receive queue of its target */
	XLB_ROLE_E,	 /* a relay's own connection to Envoy */
	XLB_ROLE_DIRECT, /* captured straight to Envoy: kept only for its original destination */
};

/* Value of xlb_sockets_own (SK_STORAGE): what a socket is, from before it connects until the kernel frees it, so no
 * connection attempt that fails can leave anything behind.  Written by the connect hooks (C, DIRECT), by the keeper by
 * file descriptor before connect(2) (U, E, X), and by sockops (B; and the cookie of all). */
struct xlb_own {
	__u64 cookie; /* 0 until the connection is established and its struct xlb_conn exists */
	__u32 role;
	__u32 pool; /* U */
	__u32 view;
	__u32 image;		     /* C: slot in xlb_images */
	struct xlb_address original; /* C, DIRECT; U and E to Envoy: the destination that SO_ORIGINAL_DST answers */
	__u16 original_port;	     /* host byte order */
	__u16 pad[3];
};

enum xlb_state { XLB_IDLE = 0, XLB_BUSY, XLB_DEAD, XLB_RETIRED };

/* Where a framer is in a stream of HTTP/1.1 messages (xlb_frame.h). */
struct xlb_frame {
	__u8 phase; /* enum xlb_phase */
	__u8 flags; /* enum xlb_frame_flags, of the message in progress */
	__u16 status;
	__u32 name;   /* hash of the header name so far */
	__u32 token;  /* hash of the token so far */
	__u32 column; /* bytes of the line so far; meaning depends on the phase */
	__u64 rest;   /* bytes left of a body or chunk */
};

enum xlb_phase {
	XLB_PHASE_START = 0, /* before and in the first line of a message */
	XLB_PHASE_NAME,
	XLB_PHASE_VALUE,
	XLB_PHASE_BODY,	      /* `rest` bytes of a body with content-length */
	XLB_PHASE_CHUNK_SIZE, /* the line before a chunk */
	XLB_PHASE_CHUNK,      /* `rest` bytes of a chunk, its CRLF included */
	XLB_PHASE_TRAILER,
	XLB_PHASE_UNTIL_CLOSE, /* a response body that ends with the connection */
	XLB_PHASE_TUNNEL,      /* after 101 */
	XLB_PHASE_DONE,	       /* the message is complete */
	XLB_PHASE_ERROR,       /* not HTTP/1.1 as we know it; nothing after it is understood */
};

enum xlb_frame_flags {
	XLB_FRAME_LENGTH = 1,  /* content-length seen */
	XLB_FRAME_CHUNKED = 2, /* transfer-encoding: chunked */
	XLB_FRAME_CLOSE = 4,   /* connection: close, or HTTP/1.0 without keep-alive */
	XLB_FRAME_HEAD = 8,    /* the head of the final (not 1xx) message is complete */
	XLB_FRAME_KEEP_ALIVE = 16,
	XLB_FRAME_HTTP10 = 32,
};

/* Value of xlb_conns, key: socket cookie.  Made by sockops when a connection is established, removed by sockops when
 * it closes; that of a B which dies with a client, and of every U, by the keeper. */
struct xlb_conn {
	__u64 self;
	__u64 sock;		/* address of its struct tcp_sock, for bpf_rdonly_cast; compare skc_cookie before use */
	__u64 peer;		/* C: the B that the request in flight went to; B: its C; X: its target; 0: none */
	__u64 alt;		/* U: its B; B: its U; E: its C */
	struct xlb_frame frame; /* C: of the request; B: of the response */
	__u32 role;
	__u32 pool;  /* U, B */
	__u32 state; /* B: enum xlb_state */
	__u32 view;  /* C */
	__u32 image; /* C */

	/* C */
	__u32 in_flight;  /* 1: a response is outstanding on the kernel's way */
	__u32 relayed;	  /* enum xlb_relayed: where bytes of C go */
	__u32 expected;	  /* tcp_sock.write_seq if all that was passed to TCP is as the program thinks */
	__u32 in_request; /* 1: within a request (body still to come) */
	__u32 owed;	  /* 1: relayed for this exchange only, and its response is not complete */
	__u32 redirected; /* 1: the last verdict of this sendmsg was a redirect that the next one must undo */
	__u32 corked;	  /* bytes of an unfinished head held back */
	__u32 corks;
	__u32 upload;	   /* 1: the rest of the request body goes to A, the keeper injects it into B */
	__u32 upload_seq;  /* write_seq when that began */
	__u32 upload_busy; /* 1: the keeper has not delivered the last byte of it yet */
	__u32 head;	   /* 1: method HEAD */
	__u32 closing;	   /* enum xlb_closing */
	__u32 leave;	   /* 1: from the next request on the connection is Envoy's (XLB_OP_RELAY) */

	/* B */
	__u32 finished;	     /* 1: the exchange is over (taken atomically by whoever ends it) */
	__u32 response_done; /* 1: the last byte of the response has passed */
	__u32 spilled;	     /* 1: the response goes on through U, the keeper injects it into C */
	__u32 close_header;  /* 1: `connection: close` must still be added to this response */
	__u64 response_bytes;

	struct xlb_address original; /* C, U, E, DIRECT: see struct xlb_own */
	__u16 original_port;
	__u16 pad16;
	__u32 retire; /* B: 1: not to be used again after the exchange in progress */
	struct xlb_pair_key {
		struct xlb_address local, remote; /* as the connecting side sees it */
		__u16 local_port, remote_port;	  /* host byte order */
		__u32 pad;
		__u64 netns; /* cookie of the network namespace for loopback addresses, else 0: ends may be in two */
	} pair;		     /* key of its entry in xlb_pairs; all zero: none */
};

enum xlb_relayed {
	XLB_RELAYED_NOT = 0,  /* to backends and to Envoy's pools, inside the kernel */
	XLB_RELAYED_ONCE = 1, /* to A until this exchange is over: there was no idle connection */
	XLB_RELAYED_EVER = 2, /* to A for ever: the kernel does not know where requests begin any more */
};

enum xlb_closing {
	XLB_CLOSING_CLIENT = 1,	 /* the client asked for `connection: close` */
	XLB_CLOSING_BACKEND = 2, /* the response said so, or ends with the connection */
	XLB_CLOSING_HALF = 4,	 /* counted in xlb_shared.half_closed */
};

/* ---- pools ----------------------------------------------------------------------------------------------------
 * Number 0 is none.  Inner map of xlb_pools: BPF_MAP_TYPE_STACK of the cookies of idle Bs, XLB_POOL_DEPTH deep. */

/* Value of xlb_endpoints (array by pool number): what the keeper connects to.  Written by the agent for the pools of
 * endpoints, by the keeper for the last XLB_DESTINATIONS. */
struct xlb_endpoint {
	struct xlb_address address;
	__u16 port; /* host byte order; 0: this pool is not in use, close its connections */
	__u16 pad;
	__u32 generation; /* changes when the number is given to another endpoint */
};

enum xlb_pool_flags {
	XLB_POOL_REMOTE = 1, /* set by the keeper: no B was seen for its connections */
};

/* Value of xlb_pool_state (mmapable array by pool number); the programs and the keeper write. */
struct xlb_pool_state {
	__u32 active; /* requests in flight, for least request */
	__u32 flags;
	__u64 requests;
	__u64 empty; /* how often no idle connection was there */
};

/* Key of xlb_destinations (hash, written by the keeper): which pool leads to Envoy for a C; value: __u32 pool. */
struct xlb_destination {
	struct xlb_address original;
	__u16 original_port;
	__u16 pad;
	__u32 view;
};

/* The one value of xlb_shared (mmapable array). */
struct xlb_shared {
	__u64 half_closed; /* Cs that have shut down their sending side only: while 0, RDHUP on A means gone */
	__u64 lost_events; /* events that did not fit into the ring */
	__u64 switches;	   /* entries of xlb_switches; written by the agent */
	__u64 pad[5];
};

/* ---- events to the keeper (ring buffer xlb_events) -------------------------------------------------------------- */
enum xlb_event_type {
	XLB_EV_CLIENT_GONE = 1, /* C ended with a request in flight: end U with a reset */
	XLB_EV_BACKEND_GONE,	/* B ended with a response outstanding; arg: enum xlb_gone_flags */
	XLB_EV_POOL_EMPTY,	/* no idle connection was there: open one more */
	XLB_EV_RETIRE,		/* B must not be used again: close U */
	XLB_EV_IRREGULAR,	/* bytes of C went to A: accept it now and relay */
	XLB_EV_SPILL,		/* the response goes on through U from here */
	XLB_EV_READY,		/* a relayed C has no kernel response outstanding any more */
	XLB_EV_DESTINATION,	/* no pool to Envoy yet for C's view and original destination */
	XLB_EV_UPLOAD,		/* the request body goes on through A from here */
	XLB_EV_CLOSE,		/* the response that was the last one of C is complete: end A once C has it */
};

enum xlb_gone_flags {
	XLB_GONE_STARTED = 1,	  /* part of the response has been delivered */
	XLB_GONE_UNTIL_CLOSE = 2, /* the response ends with the connection: this is its end */
	XLB_GONE_SPILLED = 4,	  /* the rest of the response is in U */
	XLB_GONE_MALFORMED = 8,	  /* B lives, but what it sends is not HTTP/1.1: end U with a reset */
};

struct xlb_event {
	__u32 type;
	__u32 pool;
	__u64 client;	/* cookie of C */
	__u64 backend;	/* cookie of B */
	__u64 upstream; /* cookie of U */
	__u32 arg;
	__u32 pad;
};

/* ---- what the keeper asks of the programs (SEC("syscall") xlb_control, BPF_PROG_TEST_RUN with ctx_in) -------------
 * State is changed by programs only, with atomics: user space would overwrite what they write meanwhile. */
enum xlb_op {
	XLB_OP_QUEUE = 1, /* client -> arg: bytes in its receive queue, ~0 if it is gone; flags: in_flight;
			   * references: to its socket */
	XLB_OP_TARGET,	/* backend = cookie of an X: it injects into `client` from now on (0: nobody); flags 1: what it
			     * sends next completes a spilled response, so clear the client's in_flight */
	XLB_OP_TAKE,	/* the client of a dead B is now ours; arg: 1 if it still was B's */
	XLB_OP_RELEASE, /* end of a spilled response; flags 1: B is reusable, back into its pool */
	XLB_OP_UPLOAD_END, /* before the last piece of a spilled upload is injected; arg in: bytes taken from A; arg out:
			     * 1: C is back on the kernel's way, 0: something is pipelined, it stays relayed */
	XLB_OP_UPLOAD_DONE, /* the last piece is queued on B: the exchange may end */
	XLB_OP_RETIRE,	    /* B must not be used again; arg: 1 if it was idle (so U can be closed now) */
	XLB_OP_FORGET,	    /* remove the entry of a U or B and its pair */
	/* flags 1: the C `client` is Envoy's from its next request on; 0: no more, if it has made none; arg: 1 if it lives */
	XLB_OP_RELAY,
};

struct xlb_request {
	__u32 op;
	__u32 flags;
	__u64 client;
	__u64 backend;
	__u32 arg;
	__u32 references; /* QUEUE, out */
};

#endif

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Random numbers, and a mutator that knows what HTTP/1.1 is made of: lines, words, numbers, and the bytes between. */
#ifndef XLB_MUTATE_H
#define XLB_MUTATE_H

#include <stddef.h>
#include <string.h>

#include <linux/types.h>

size_t LLVMFuzzerMutate(__u8 *data, size_t size, size_t most);

struct xlb_random {
	__u64 state;
};

static struct xlb_random xlb_random_from(const __u8 *bytes, __u64 size)
{
	struct xlb_random random = { 0xcbf29ce484222325ull };
	__u64 i;

	for (i = 0; i < size; i++)
		random.state = (random.state ^ bytes[i]) * 0x100000001b3ull;
	random.state |= 1;
	return random;
}

static __u64 xlb_random_below(struct xlb_random *random, __u64 limit)
{
	random->state ^= random->state << 13;
	random->state ^= random->state >> 7;
	random->state ^= random->state << 17;
	return limit ? (random->state >> 11) % limit : 0;
}

static const char *const xlb_words[] = {
	"GET",
	"POST",
	"HEAD",
	"OPTIONS",
	"CONNECT",
	"get",
	"G",
	"PRI",
	" / HTTP/1.1\r\n",
	" /a/b?c=d HTTP/1.1\r\n",
	" * HTTP/1.1\r\n",
	" http://a/ HTTP/1.1\r\n",
	"HTTP/1.1",
	"HTTP/1.0",
	"HTTP/2.0",
	"HTTP/1.1 200 OK\r\n",
	"HTTP/1.1 204 \r\n",
	"HTTP/1.1 304\r\n",
	"HTTP/1.1 100 Continue\r\n\r\n",
	"HTTP/1.0 200 OK\r\n",
	"HTTP/1.1 101 x\r\n",
	"Host: a\r\n",
	"host: a.b:80\r\n",
	"host:\r\n",
	"Content-Length: 5\r\n",
	"content-length: 0\r\n",
	"content-length: 007\r\n",
	"Content-Length: +1\r\n",
	"content-length: 1,1\r\n",
	"content-length: 4611686018427387904\r\n",
	"content-length: 18446744073709551617\r\n",
	"Transfer-Encoding: chunked\r\n",
	"transfer-encoding: Chunked \r\n",
	"transfer-encoding: gzip, chunked\r\n",
	"transfer-encoding:\tchunked\r\n",
	"transfer-encoding: identity\r\n",
	"transfer-encoding: xchunked\r\n",
	"Connection: close\r\n",
	"Connection: keep-alive\r\n",
	"connection: keep-alive , close\r\n",
	"connection: close,te\r\n",
	"connection: content-length\r\n",
	"te: trailers\r\n",
	"expect: 100-continue\r\n",
	"upgrade: websocket\r\n",
	"x-envoy-a: b\r\n",
	"proxy-connection: close\r\n",
	"content-type: application/grpc\r\n",
	"\r\n\r\n",
	"\r\n",
	"\n",
	"\r",
	"\n\n",
	"\r\r\n",
	"\r\n ",
	"\r\n\t",
	" :",
	": ",
	":",
	",",
	";",
	" ",
	"\t",
	"\x0b",
	"\x7f",
	"\x80",
	"\xff",
	"0\r\n\r\n",
	"5\r\nhello\r\n",
	"1\r\nx\r\n",
	"00000000000000001\r\nx\r\n",
	"0x1\r\nx\r\n",
	"1;a=\"b\"\r\nx\r\n",
	"1 ;a\r\nx\r\n",
	"ffffffffffffffff\r\n",
	"0\r\nt: u\r\n\r\n",
	"0;e\r\n\r\n",
	"/..",
	"/.",
	"//",
	"%2f",
	"?",
	"#",
	"\\",
	"chunked",
	"close",
	"keep-alive",
};

/* Where a line begins, or anywhere. */
static size_t xlb_somewhere(struct xlb_random *random, const __u8 *data, size_t size)
{
	size_t at = xlb_random_below(random, size + 1);

	if (xlb_random_below(random, 3))
		while (at && at < size && data[at - 1] != '\n')
			at--;
	return at;
}

static size_t xlb_replace(__u8 *data, size_t size, size_t most, size_t at, size_t cut, const void *with, size_t n)
{
	if (cut > size - at)
		cut = size - at;
	if (size - cut + n > most)
		return size;
	memmove(data + at + n, data + at + cut, size - at - cut);
	memcpy(data + at, with, n);
	return size - cut + n;
}

size_t LLVMFuzzerCustomMutator(__u8 *data, size_t size, size_t most, unsigned int seed)
{
	struct xlb_random random = { (__u64)seed * 2654435761u | 1 };
	size_t at, to, n;
	const char *word;
	__u8 copy[256];

	xlb_random_below(&random, 1);
	if (!size || !xlb_random_below(&random, 3))
		return LLVMFuzzerMutate(data, size, most);
	at = xlb_somewhere(&random, data, size);
	word = xlb_words[xlb_random_below(&random, sizeof(xlb_words) / sizeof(*xlb_words))];
	switch (xlb_random_below(&random, 6)) {
	case 0: /* a word more */
		return xlb_replace(data, size, most, at, 0, word, strlen(word));
	case 1: /* over something as long */
		return xlb_replace(data, size, most, at, strlen(word), word, strlen(word));
	case 2: /* a piece of it elsewhere too */
		to = xlb_somewhere(&random, data, size);
		n = xlb_random_below(&random, sizeof(copy)) + 1;
		if (n > size - at)
			n = size - at;
		memcpy(copy, data + at, n);
		return xlb_replace(data, size, most, to, 0, copy, n);
	case 3: /* a piece less */
		n = 1 + xlb_random_below(&random, xlb_random_below(&random, 2) ? 3 : 60);
		return size > n ? xlb_replace(data, size, most, at, n, "", 0) : size;
	case 4: /* the same byte many times: what is read in blocks has edges */
		n = 1 + xlb_random_below(&random, 200);
		memset(copy, size > at ? data[at] : 'a', n);
		return xlb_replace(data, size, most, at, 0, copy, n);
	default: /* something else between two words */
		while (at < size && data[at] != ' ' && data[at] != ':' && data[at] != '\r' && data[at] != '\n')
			at++;
		return xlb_replace(data, size, most, at, xlb_random_below(&random, 2), word, strlen(word) < 3);
	}
}

#endif

/* For programs that run under `leasehold guard`: hear who wants a file, let it go, take it again.
 *
 * One header, no library, C99. A notice is a line of JSON (docs/guard.md); lh_guard_break() finds the id of a break in it,
 * which is all that an answer takes.
 */
#ifndef LEASEHOLD_GUARDED_H
#define LEASEHOLD_GUARDED_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* The descriptor of the guard, or -1 if there is none. Poll it together with others; a notice is due when it is readable. */
static inline int lh_guard_fd(void)
{
	const char *number = getenv("LEASEHOLD_BREAK_FD");
	return number ? atoi(number) : -1;
}

/* Reads one line, without its end, waiting for it. Its length; 0: the guard is gone, and everybody passes; -1 and errno:
 * it failed, or (EMSGSIZE) the line is longer than the buffer. */
static inline ssize_t lh_guard_read(int fd, char *line, size_t size)
{
	size_t length = 0;
	for (;;) {
		char c;
		ssize_t got = read(fd, &c, 1);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got;
		if (c == '\n') {
			line[length] = 0;
			return (ssize_t)length;
		}
		if (length + 1 >= size) {
			errno = EMSGSIZE;
			return -1;
		}
		line[length++] = c;
	}
}

/* The id of the break that the line tells of, or 0 if it tells of something else. */
static inline unsigned long long lh_guard_break(const char *line)
{
	const char *id = strstr(line, "\"id\":");
	if (!id || !strstr(line, "\"event\":\"break\""))
		return 0;
	return strtoull(id + 5, NULL, 10);
}

static inline int lh_guard_say(int fd, const char *word, const char *what)
{
	char line[4200];
	int length = snprintf(line, sizeof line, "%s %s\n", word, what);
	if (length < 0 || (size_t)length >= sizeof line) {
		errno = ENAMETOOLONG;
		return -1;
	}
	return write(fd, line, (size_t)length) == length ? 0 : -1;
}

/* Lets go: nothing reaches the file's memory any more, and nothing under way will. The breaker goes on at once. */
static inline int lh_guard_release(int fd, unsigned long long id)
{
	char number[24];
	snprintf(number, sizeof number, "%llu", id);
	return lh_guard_say(fd, "release", number);
}

/* Takes a file again, by the name that notices have. */
static inline int lh_guard_hold(int fd, const char *path)
{
	return lh_guard_say(fd, "hold", path);
}

/* Makes what DMA has written into a shared mapping of `file` durable while the memory stays registered; fsync alone does
 * not. DMA that lands meanwhile may be durable or not: call it while nothing is written to the range. */
static inline int lh_guard_make_durable(int file, void *address, size_t length)
{
	if (madvise(address, length, MADV_POPULATE_WRITE))
		return -1;
	return fsync(file);
}

#endif

// SPDX-License-Identifier: Apache-2.0
/* The operations of bench/guards.py. Prints the median cost of one, as the processor's counter tells it: in a machine that counts
 * instructions, the instructions between the two readings, the kernel's included.
 *
 *   guards open N FILE        open for reading, close
 *   guards exec N PROGRAM     vfork, exec, wait
 *   guards tcp N PORT         connect to a port of the loopback where nobody listens
 *   guards udp N PORT         connect a datagram socket
 *
 * An operation that fails in the way its denial fails counts all the same; the number of those comes second. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 100000, WARM_UP = 20 };

static unsigned long long counts[MOST];
static long refused;

static unsigned long long counter(void)
{
        unsigned int low, high;

        __asm__ volatile("lfence\nrdtsc\nlfence" : "=a"(low), "=d"(high)::"memory");
        return (unsigned long long)high << 32 | low;
}

static void die(const char *what)
{
        fprintf(stderr, "guards: %s: %s\n", what, strerror(errno));
        exit(1);
}

static void one_open(const char *file)
{
        int fd = open(file, O_RDONLY);

        if (fd >= 0)
                close(fd);
        else if (errno == EPERM)
                refused++;
        else
                die(file);
}

static void one_exec(char *program)
{
        char *const arguments[] = {program, 0};
        char *const nothing[] = {0};
        volatile int failed = 0;
        int status;
        pid_t child = vfork();

        if (child < 0)
                die("vfork");
        if (!child) {
                execve(program, arguments, nothing);
                failed = errno;
                _exit(0);
        }
        if (waitpid(child, &status, 0) < 0)
                die("waitpid");
        errno = failed;
        if (failed == EPERM)
                refused++;
        else if (failed)
                die(program);
}

static void one_connect(int socket, int port, int expected)
{
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};

        to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (connect(socket, (struct sockaddr *)&to, sizeof(to)) == 0 ? !expected : errno == expected)
                return;
        if (errno != EPERM)
                die("connect");
        refused++;
}

static int compare(const void *a, const void *b)
{
        unsigned long long x = *(const unsigned long long *)a, y = *(const unsigned long long *)b;

        return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
        long n = argc == 4 ? atol(argv[2]) : 0;
        int fd = -1;

        if (n < 1 || n > MOST) {
                fprintf(stderr, "guards open|exec|tcp|udp N WHAT, N from 1 to %d\n", MOST);
                return 2;
        }
        if (!strcmp(argv[1], "tcp"))
                fd = socket(AF_INET, SOCK_STREAM, 0);
        else if (!strcmp(argv[1], "udp"))
                fd = socket(AF_INET, SOCK_DGRAM, 0);
        for (long i = -WARM_UP; i < n; i++) {
                unsigned long long begin;

                if (!i)
                        refused = 0;
                begin = counter();
                if (!strcmp(argv[1], "open"))
                        one_open(argv[3]);
                else if (!strcmp(argv[1], "exec"))
                        one_exec(argv[3]);
                else if (fd >= 0)
                        one_connect(fd, atoi(argv[3]), argv[1][0] == 't' ? ECONNREFUSED : 0);
                else
                        die(argv[1]);
                if (i >= 0)
                        counts[i] = counter() - begin;
        }
        qsort(counts, n, sizeof(*counts), compare);
        printf("%llu %ld\n", counts[n / 2], refused);
        return 0;
}

// SPDX-License-Identifier: Apache-2.0
/* A worker of a made-up service: it does its rounds, maybe something strange, and then what a rule forbids.
 *
 *   worker ROUNDS ODD HOW FILE [PORT]
 *
 * ODD calls that no worker ever makes come before the deed. HOW: read, connect, fork (a child reads), exec (cat reads, as
 * another program), thread (another thread of the process reads). The exit status is the deed's errno. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *file;
static int port;

static void one_round(void)
{
        char buffer[64];
        struct stat st;
        int fd = open("/etc/hostname", O_RDONLY);

        fstat(fd, &st);
        while (read(fd, buffer, sizeof(buffer)) > 0)
                ;
        close(fd);
        getppid();
}

static int read_it(void)
{
        int fd = open(file, O_RDONLY);

        if (fd < 0)
                return errno;
        close(fd);
        return 0;
}

static int connect_it(void)
{
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
        int fd = socket(AF_INET, SOCK_STREAM, 0), failed;

        to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        failed = connect(fd, (void *)&to, sizeof(to)) ? errno : 0;
        close(fd);
        return failed == ECONNREFUSED ? 0 : failed;
}

static void *in_thread(void *result)
{
        *(int *)result = read_it();
        return 0;
}

int main(int argc, char **argv)
{
        static const long odd[] = {SYS_getsid, SYS_sysinfo, SYS_getpgid, SYS_getpriority, SYS_sched_getparam, SYS_umask, SYS_times};
        int rounds, strange, status = 0;
        const char *how;
        pthread_t thread;
        pid_t child;

        if (argc < 5)
                return 255;
        rounds = atoi(argv[1]);
        strange = atoi(argv[2]);
        how = argv[3];
        file = argv[4];
        port = argc > 5 ? atoi(argv[5]) : 0;
        for (int i = 0; i < rounds; i++)
                one_round();
        for (int i = 0; i < strange; i++)
                syscall(odd[(i * i + i / 3) % (sizeof(odd) / sizeof(*odd))], 0, 0, 0);
        if (!strcmp(how, "read"))
                return read_it();
        if (!strcmp(how, "connect"))
                return connect_it();
        if (!strcmp(how, "thread")) {
                pthread_create(&thread, 0, in_thread, &status);
                pthread_join(thread, 0);
                return status;
        }
        child = fork();
        if (!child) {
                if (!strcmp(how, "fork"))
                        _exit(read_it());
                execl("/bin/cat", "cat", file, NULL);
                _exit(255);
        }
        waitpid(child, &status, 0);
        return WEXITSTATUS(status);
}

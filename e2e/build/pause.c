/* The first process of every pod: holds its namespaces, reaps what the pod's containers orphan, ends when told to. */
#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>

int main(void) {
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    for (;;) {
        int number;
        if (sigwait(&all, &number) != 0)
            continue;
        if (number == SIGTERM || number == SIGINT)
            return 0;
        if (number == SIGCHLD)
            while (waitpid(-1, NULL, WNOHANG) > 0)
                ;
    }
}

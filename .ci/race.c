/* Calls of csrc/parallel.c from several threads at once, long and short, back to back and after
 * pauses, for ThreadSanitizer to watch.  Whether each is right is told by the exit status. */
#include <pthread.h>
#include <unistd.h>

#include "fastce.h"

enum { N_CALLERS = 3, N_CALLS = 20000, MOST_CHUNKS = 512 };

typedef struct {
    _Atomic int next;
    int n_chunks, found[MOST_CHUNKS];
} job;

static void claim_chunks(void *arg, int thread)
{
    job *of_all = arg;
    (void)thread;
    for (int i; (i = atomic_fetch_add(&of_all->next, 1)) < of_all->n_chunks;) of_all->found[i]++;
}

static void *call_often(void *arg)
{
    int *wrong = arg;
    for (int k = 0; k < N_CALLS; k++) {
        job mine = {.n_chunks = 1 + (k * 7) % MOST_CHUNKS};
        fastce_parallel(claim_chunks, &mine, 2 + k % 3);
        for (int i = 0; i < mine.n_chunks; i++) *wrong += mine.found[i] != 1;
        if (k % 500 == 0) usleep(200); /* helpers fall asleep */
    }
    return NULL;
}

int main(void)
{
    pthread_t callers[N_CALLERS];
    int wrong[N_CALLERS] = {0}, all = 0;
    for (int i = 0; i < N_CALLERS; i++)
        if (pthread_create(callers + i, NULL, call_often, wrong + i)) return 2;
    for (int i = 0; i < N_CALLERS; i++) {
        pthread_join(callers[i], NULL);
        all += wrong[i];
    }
    return all != 0;
}

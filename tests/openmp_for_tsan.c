/* The few functions of GNU OpenMP that the kernels call, by POSIX threads.
 *
 * ThreadSanitizer does not see how GNU OpenMP hands work to its threads, because that library is not
 * compiled for it, and would report every loop. Preloaded in its place, this runtime starts and
 * joins threads in ways that the sanitizer knows. It is slow and for tests alone: see .ci/sanitize.
 *
 *     gcc -shared -fPIC -O1 -fsanitize=thread openmp_for_tsan.c -o openmp.so -lpthread
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

enum { MAX_THREADS = 64, MAX_LOOPS = 64 }; /* loops of one parallel region */

struct loop { bool begun; long next, end, step, chunk; };

struct team {
    void (*work)(void *);
    void *data;
    int n;
    pthread_barrier_t barrier;
    pthread_mutex_t lock;
    struct loop loops[MAX_LOOPS];
};

struct member { struct team *team; int id; };

static __thread struct team *team;
static __thread int id, n_loops;

static void run(struct team *of, int as) {
    struct team *outer = team;
    int outer_id = id, outer_loops = n_loops;
    team = of, id = as, n_loops = 0;
    of->work(of->data);
    team = outer, id = outer_id, n_loops = outer_loops;
}

static void *begin(void *argument) {
    struct member *self = argument;
    run(self->team, self->id);
    return NULL;
}

void GOMP_parallel(void (*work)(void *), void *data, unsigned n_threads, unsigned flags) {
    struct team *own = calloc(1, sizeof *own);
    struct member members[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    (void)flags;
    if (!own) abort();
    own->work = work, own->data = data;
    own->n = n_threads == 0 || n_threads > MAX_THREADS ? 1 : (int)n_threads;
    pthread_barrier_init(&own->barrier, NULL, (unsigned)own->n);
    pthread_mutex_init(&own->lock, NULL);
    for (int i = 1; i < own->n; i++) {
        members[i] = (struct member){own, i};
        if (pthread_create(&threads[i], NULL, begin, &members[i])) abort();
    }
    run(own, 0);
    for (int i = 1; i < own->n; i++) pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&own->barrier);
    pthread_mutex_destroy(&own->lock);
    free(own);
}

void GOMP_barrier(void) {
    if (team) pthread_barrier_wait(&team->barrier);
}

static bool next_of(struct loop *loop, long *first, long *last) {
    bool is_left;
    pthread_mutex_lock(&team->lock);
    is_left = loop->next < loop->end;
    *first = loop->next;
    loop->next += loop->chunk * loop->step;
    *last = loop->next < loop->end ? loop->next : loop->end;
    pthread_mutex_unlock(&team->lock);
    return is_left;
}

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long step, long chunk, long *first,
                                          long *last) {
    struct loop *loop = &team->loops[n_loops];
    if (n_loops == MAX_LOOPS || step <= 0) abort();
    pthread_mutex_lock(&team->lock);
    if (!loop->begun) *loop = (struct loop){true, start, end, step, chunk};
    pthread_mutex_unlock(&team->lock);
    return next_of(loop, first, last);
}

bool GOMP_loop_nonmonotonic_dynamic_next(long *first, long *last) {
    return next_of(&team->loops[n_loops], first, last);
}

void GOMP_loop_end_nowait(void) { n_loops++; }
int omp_get_num_threads(void) { return team ? team->n : 1; }
int omp_get_thread_num(void) { return id; }
int omp_get_max_threads(void) { return 2; }

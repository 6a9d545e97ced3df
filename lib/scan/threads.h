/* A few threads that sleep until there is work.

   `spread(fn, arg, items, threads)` calls fn(arg, item, scratch) for every item. Which
   thread takes which item is left to chance; the items write to different places and are
   cut by shape alone, so the result does not depend on it. Nobody spins: idle threads
   wait on a condition. After a fork the child has no threads, forgets the pool and starts
   its own when it needs one. A second caller at the same time works alone. */
#pragma once
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

typedef void (*item_fn)(const void *arg, long item, float *scratch);
enum { MOST = 64, LARGE = 1 << 21 };

static struct {
    pthread_mutex_t caller, lock;
    pthread_cond_t work, idle;
    int workers, wanted, busy; /* alive, asked for this job, still at it */
    unsigned long job;         /* counts jobs, so that a worker sees a new one */
    item_fn fn;
    const void *arg;
    long items, scratch;
    long next; /* the first item that nobody has taken */
    int starved; /* a thread found no memory for its scratch */
} pool = {.caller = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .work = PTHREAD_COND_INITIALIZER,
          .idle = PTHREAD_COND_INITIALIZER};

static float *workspace(long floats) { /* aligned to a cache line, or NULL */
    void *p = NULL;
    return posix_memalign(&p, 64, MAX(floats, 16) * sizeof(float)) ? NULL : p;
}

/* For what will be written whole: large pages, where the system has them. A fresh
   result is otherwise a fault for every 4 KB: up to a third of a training step. */
static void large_pages(void *start, long bytes) {
#if defined(MADV_HUGEPAGE)
    uintptr_t from = ((uintptr_t)start + LARGE - 1) / LARGE * LARGE;
    uintptr_t to = ((uintptr_t)start + bytes) / LARGE * LARGE;
    if (start && to > from) madvise((void *)from, to - from, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}

/* glibc gives freed memory back to the system, so that every step of a training pays for
   its pages again, until it has seen a block larger than these come and go. Show it one,
   once; nobody writes to it, so it takes no memory. */
static void keep_freed_memory(void) {
    static int shown;
    if (__atomic_exchange_n(&shown, 1, __ATOMIC_RELAXED)) return;
    void *volatile block = malloc(15 * LARGE); /* volatile: or the pair is left out */
    free(block);
}

static void take_items(void) {
    float *scratch = workspace(pool.scratch);
    if (!scratch) __atomic_store_n(&pool.starved, 1, __ATOMIC_RELAXED);
    for (long i; scratch && (i = __atomic_fetch_add(&pool.next, 1, __ATOMIC_RELAXED)) <
                                pool.items;)
        pool.fn(pool.arg, i, scratch);
    free(scratch);
}

static void *worker(void *number) {
    unsigned long seen = 0;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.job == seen || (long)number >= pool.wanted) {
            seen = pool.job;
            pthread_cond_wait(&pool.work, &pool.lock);
        }
        seen = pool.job;
        pthread_mutex_unlock(&pool.lock);
        take_items();
        pthread_mutex_lock(&pool.lock);
        if (--pool.busy == 0) pthread_cond_signal(&pool.idle);
    }
    return NULL;
}

static void forget_pool(void) { /* in the child of a fork */
    pthread_mutex_init(&pool.caller, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.work, NULL);
    pthread_cond_init(&pool.idle, NULL);
    pool.workers = pool.wanted = pool.busy = 0;
    pool.job = 0;
}

static void grow_pool(int workers) {
    static int registered;
    if (!registered) registered = !pthread_atfork(NULL, NULL, forget_pool);
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (pthread_t t; pool.workers < workers; pool.workers++)
        if (pthread_create(&t, &detached, worker, (void *)(long)pool.workers)) break;
    pthread_attr_destroy(&detached);
}

/* 0, or 1 when there was no memory for the scratch space of some thread. */
static int spread(item_fn fn, const void *arg, long items, long scratch, int threads) {
    threads = (int)MIN(MIN(threads, items), MOST);
    if (threads < 2 || pthread_mutex_trylock(&pool.caller)) {
        float *own = workspace(scratch);
        for (long i = 0; own && i < items; i++) fn(arg, i, own);
        free(own);
        return own == NULL;
    }
    pthread_mutex_lock(&pool.lock);
    grow_pool(threads - 1);
    pool.fn = fn, pool.arg = arg, pool.items = items, pool.scratch = scratch;
    pool.next = 0, pool.starved = 0;
    pool.wanted = pool.busy = MIN(threads - 1, pool.workers);
    pool.job++;
    pthread_cond_broadcast(&pool.work);
    pthread_mutex_unlock(&pool.lock);
    take_items();
    pthread_mutex_lock(&pool.lock);
    while (pool.busy) pthread_cond_wait(&pool.idle, &pool.lock);
    pool.wanted = 0;
    pthread_mutex_unlock(&pool.lock);
    int starved = pool.starved && pool.next < pool.items;
    pthread_mutex_unlock(&pool.caller);
    return starved;
}

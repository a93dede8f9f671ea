/* Walk a graph that hnswlib built, over vectors that lie where they are: what of hnswlib answers questions.
 *
 *   graph.hnsw --walk_read, once--> links of level 0, links above it, rows      checked: no number leads outside
 *   query --walk_nearest--> down the upper levels --> the best `ef` of level 0 --> the best `k` of these
 *
 * hnswlib copies a whole graph with its vectors while it holds Python's lock, 1.2 ms a megabyte. This is called without
 * the lock, keeps the links alone, and reads vectors from the mapped matrix. The search is that of Malkov and Yashunin,
 * "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World graphs" (2018),
 * algorithms 2 and 5. Nothing here knows of Python.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef VERSION
#define VERSION 2
#endif

#define INLINED static inline __attribute__((always_inline))
#if defined(__x86_64__)
#define LANES 8
#else
#define LANES 4
#endif

/* how many vectors, and how much of each, are on their way while one is compared: a tenth of the time of a walk */
#define AHEAD 2
#define FETCHED_FLOATS 96
#define WIDTH_MAX 256

typedef struct {
    const float *matrix;       /* [any, dimensions] */
    const uint32_t *rows;      /* [count]: the row of the matrix that a node stands for */
    const uint32_t *links;     /* [count, width]: how many neighbours, and which */
    const int64_t *above_at;   /* [count]: where a node's links of level 1 begin in `above` */
    const uint32_t *above;     /* [.., above_width] */
    uint32_t count, dimensions, width, above_width, top, entry, squared;
} Graph;

typedef struct {
    float far;
    uint32_t node;
} Near;

typedef struct {
    Near *at;
    size_t held, room;
} Heap;

/* -- reading ------------------------------------------------------------------------------------------------------ */

static uint32_t number_at(const uint8_t *bytes) {
    uint32_t number;
    memcpy(&number, bytes, sizeof number);
    return number;
}

/* Copy one list of links; 0 if it leads outside. hnswlib counts in the lower half of the first word. */
static int copied(const uint8_t *list, uint32_t width, uint32_t count, uint32_t *to) {
    uint32_t many = number_at(list) & 0xffff;
    if (many > width - 1)
        return 0;
    to[0] = many;
    for (uint32_t i = 1; i <= many; i++) {
        to[i] = number_at(list + 4 * (size_t)i);
        if (to[i] >= count)
            return 0;
    }
    return 1;
}

/* Take `count` nodes of `stride` bytes from `level0` apart, labels at `label_at` in each, and `above_bytes` of what
 * follows them. `levels` [count], the other arrays as in Graph. 0, or which check failed. */
int walk_read(const uint8_t *level0, uint64_t count, uint64_t stride, uint64_t label_at, const uint8_t *rest,
              uint64_t rest_bytes, uint32_t width, uint32_t above_width, uint32_t top, uint64_t rows_max,
              uint32_t *rows, uint32_t *links, int64_t *above_at, uint32_t *above, uint32_t *levels) {
    uint64_t at = 0, written = 0;
    if (width > WIDTH_MAX)
        return 1;
    for (uint64_t node = 0; node < count; node++) {
        const uint8_t *from = level0 + node * stride;
        uint64_t label;
        memcpy(&label, from + label_at, sizeof label);
        if (label >= rows_max)
            return 2;
        rows[node] = (uint32_t)label;
        if (!copied(from, width, (uint32_t)count, links + node * width))
            return 3;
    }
    for (uint64_t node = 0; node < count; node++) {
        if (at + 4 > rest_bytes)
            return 4;
        uint64_t bytes = number_at(rest + at), list_bytes = 4 * (uint64_t)above_width;
        at += 4;
        if (bytes % list_bytes || bytes / list_bytes > top || at + bytes > rest_bytes)
            return 5;
        levels[node] = (uint32_t)(bytes / list_bytes);
        above_at[node] = (int64_t)written;
        for (uint32_t level = 0; level < levels[node]; level++, at += list_bytes, written += above_width)
            if (!copied(rest + at, above_width, (uint32_t)count, above + written))
                return 6;
    }
    if (at != rest_bytes)
        return 7;
    /* a neighbour on some level has links there, too */
    for (uint64_t node = 0; node < count; node++)
        for (uint32_t level = 1; level <= levels[node]; level++) {
            const uint32_t *list = above + above_at[node] + (uint64_t)(level - 1) * above_width;
            for (uint32_t i = 1; i <= list[0]; i++)
                if (levels[list[i]] < level)
                    return 8;
        }
    return 0;
}

/* Have the pages of a mapped file in memory before somebody waits for them. */
uint64_t walk_touch(const uint8_t *bytes, uint64_t size) {
    uint64_t sum = 0;
    for (uint64_t at = 0; at < size; at += 4096)
        sum += *(const volatile uint8_t *)(bytes + at);
    return sum;
}

int walk_version(void) { return VERSION; }

/* -- distances ---------------------------------------------------------------------------------------------------- */

/* as wide as a register: what is wider is passed through memory */
typedef float Lanes __attribute__((vector_size(4 * LANES)));

INLINED float summed(const Lanes *several) {
    float lanes[LANES], sum = 0;
    memcpy(lanes, several, sizeof lanes);
    for (size_t i = 0; i < LANES; i++)
        sum += lanes[i];
    return sum;
}

INLINED float apart(const float *row, const float *query, size_t dimensions, int squared) {
    size_t i = 0;
    Lanes one, other, sums[4] = {{0}, {0}, {0}, {0}};
    for (; i + 4 * LANES <= dimensions; i += 4 * LANES)
        for (size_t part = 0; part < 4; part++) {
            memcpy(&one, query + i + part * LANES, sizeof one);
            memcpy(&other, row + i + part * LANES, sizeof other);
            if (squared) {
                one -= other;
                other = one;
            }
            sums[part] += one * other;
        }
    sums[0] += sums[1];
    sums[2] += sums[3];
    sums[0] += sums[2];
    float sum = summed(&sums[0]);
    for (; i < dimensions; i++)
        sum += squared ? (query[i] - row[i]) * (query[i] - row[i]) : query[i] * row[i];
    return squared ? sum : -sum;
}

INLINED float far_from(const Graph *graph, const float *query, uint32_t node, int squared) {
    return apart(graph->matrix + (size_t)graph->rows[node] * graph->dimensions, query, graph->dimensions, squared);
}

/* Have the beginning of a vector on its way into the cache; the processor guesses the rest. */
INLINED void fetched(const float *row, size_t dimensions) {
    for (size_t i = 0; i < dimensions && i < FETCHED_FLOATS; i += 16)
        __builtin_prefetch(row + i);
}

/* The products of a query with `count` rows of a matrix, where they lie. */
INLINED void products(const float *matrix, uint64_t dimensions, const int64_t *rows, uint64_t count,
                      const float *query, float *to) {
    for (uint64_t i = 0; i < count; i++) {
        if (i + AHEAD < count)
            fetched(matrix + (size_t)rows[i + AHEAD] * dimensions, dimensions);
        to[i] = -apart(matrix + (size_t)rows[i] * dimensions, query, dimensions, 0);
    }
}

/* -- heaps: the nearest on top, or with `worst` the farthest ------------------------------------------------------- */

INLINED int before(Near one, Near other, int worst) { return worst ? one.far > other.far : one.far < other.far; }

INLINED int pushed(Heap *heap, Near near, int worst) {
    if (heap->held == heap->room) {
        size_t room = 2 * heap->room;
        Near *at = realloc(heap->at, room * sizeof *at);
        if (at == NULL)
            return 0;
        heap->at = at;
        heap->room = room;
    }
    size_t place = heap->held++;
    while (place && before(near, heap->at[(place - 1) / 2], worst)) {
        heap->at[place] = heap->at[(place - 1) / 2];
        place = (place - 1) / 2;
    }
    heap->at[place] = near;
    return 1;
}

INLINED Near popped(Heap *heap, int worst) {
    Near top = heap->at[0], last = heap->at[--heap->held];
    size_t place = 0;
    for (;;) {
        size_t child = 2 * place + 1;
        if (child >= heap->held)
            break;
        if (child + 1 < heap->held && before(heap->at[child + 1], heap->at[child], worst))
            child++;
        if (!before(heap->at[child], last, worst))
            break;
        heap->at[place] = heap->at[child];
        place = child;
    }
    heap->at[place] = last;
    return top;
}

/* -- walking ------------------------------------------------------------------------------------------------------ */

INLINED Near entered(const Graph *graph, const float *query, int squared) {
    Near best = {far_from(graph, query, graph->entry, squared), graph->entry};
    for (uint32_t level = graph->top; level >= 1; level--)
        for (int moved = 1; moved;) {
            const uint32_t *list = graph->above + graph->above_at[best.node] + (size_t)(level - 1) * graph->above_width;
            moved = 0;
            for (uint32_t i = 1; i <= list[0]; i++) {
                float far = far_from(graph, query, list[i], squared);
                if (far < best.far) {
                    best = (Near){far, list[i]};
                    moved = 1;
                }
            }
        }
    return best;
}

INLINED int gone_round(const Graph *graph, const float *query, size_t ef, int squared, Heap *ahead, Heap *found,
                       uint64_t *seen) {
    uint32_t fresh_ones[WIDTH_MAX];
    Near first = entered(graph, query, squared);
    seen[first.node / 64] |= (uint64_t)1 << first.node % 64;
    if (!pushed(ahead, first, 0) || !pushed(found, first, 1))
        return 0;
    while (ahead->held) {
        Near near = popped(ahead, 0);
        if (near.far > found->at[0].far && found->held == ef)
            break;
        const uint32_t *list = graph->links + (size_t)near.node * graph->width;
        uint32_t fresh = 0;
        for (uint32_t i = 1; i <= list[0]; i++) {
            uint64_t bit = (uint64_t)1 << list[i] % 64, *word = &seen[list[i] / 64];
            if (!(*word & bit)) {
                *word |= bit;
                fresh_ones[fresh++] = list[i];
            }
        }
        for (uint32_t i = 0; i < fresh && i < AHEAD; i++)
            fetched(graph->matrix + (size_t)graph->rows[fresh_ones[i]] * graph->dimensions, graph->dimensions);
        for (uint32_t i = 0; i < fresh; i++) {
            if (i + AHEAD < fresh)
                fetched(graph->matrix + (size_t)graph->rows[fresh_ones[i + AHEAD]] * graph->dimensions, graph->dimensions);
            Near next = {far_from(graph, query, fresh_ones[i], squared), fresh_ones[i]};
            if (found->held == ef && next.far >= found->at[0].far)
                continue;
            if (!pushed(ahead, next, 0) || !pushed(found, next, 1))
                return 0;
            if (found->held > ef)
                popped(found, 1);
        }
    }
    return 1;
}

INLINED int64_t nearest(const Graph *graph, const float *query, uint64_t ef, uint64_t k, int64_t *rows) {
    Heap ahead = {malloc(1024 * sizeof(Near)), 0, 1024}, found = {malloc((ef + 2) * sizeof(Near)), 0, ef + 2};
    uint64_t *seen = calloc((size_t)graph->count / 64 + 1, sizeof *seen);
    int64_t many = -1;
    if (ahead.at != NULL && found.at != NULL && seen != NULL) {
        int whole = graph->squared ? gone_round(graph, query, ef, 1, &ahead, &found, seen)
                                   : gone_round(graph, query, ef, 0, &ahead, &found, seen);
        if (whole) {
            while (found.held > k)
                popped(&found, 1);
            many = (int64_t)found.held;
            for (int64_t i = 0; i < many; i++)
                rows[i] = graph->rows[found.at[i].node];
        }
    }
    free(ahead.at);
    free(found.at);
    free(seen);
    return many;
}

#if defined(__x86_64__)
/* chosen when it is called: an image runs on other processors than it was built on */
#define IS_WIDE (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#define WIDE __attribute__((target("avx2,fma")))
WIDE static int64_t nearest_wide(const Graph *graph, const float *query, uint64_t ef, uint64_t k, int64_t *rows) {
    return nearest(graph, query, ef, k, rows);
}
WIDE static void products_wide(const float *matrix, uint64_t dimensions, const int64_t *rows, uint64_t count,
                               const float *query, float *to) {
    products(matrix, dimensions, rows, count, query, to);
}
#else
#define IS_WIDE 0
#define nearest_wide nearest
#define products_wide products
#endif

/* Write the rows of the `k` nearest found by looking at `ef` at a time, in no order; how many there are, or -1 where
 * memory has run out. */
int64_t walk_nearest(const Graph *graph, const float *query, uint64_t ef, uint64_t k, int64_t *rows) {
    return IS_WIDE ? nearest_wide(graph, query, ef, k, rows) : nearest(graph, query, ef, k, rows);
}

/* See `products`. */
void walk_products(const float *matrix, uint64_t dimensions, const int64_t *rows, uint64_t count, const float *query,
                   float *to) {
    if (IS_WIDE)
        products_wide(matrix, dimensions, rows, count, query, to);
    else
        products(matrix, dimensions, rows, count, query, to);
}

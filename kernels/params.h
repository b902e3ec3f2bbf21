/* What each kernel is launched with, one struct by value.
 *
 * Plain C without includes: the CUDA compiler, the emulator's C++ compiler and bindgen all read
 * it. src/backend/cuda/params.rs is made from it; tests/params.rs fails when that copy is stale.
 * Pointers are addresses on the device; shapes stand behind them. */
#ifndef TRIMTAB_PARAMS_H
#define TRIMTAB_PARAMS_H

/* Tokens whose keys and values lie in one page. */
#define PAGE_LEN 16
/* The slot of a row that has ended: nothing is stored for it. */
#define NO_SLOT 0xffffffffu
/* What is drawn where logits are no distribution. */
#define NO_TOKEN 0xffffffffu
/* Rows of one launch of sample, threads of a block, and bytes of its shared memory. */
#define SAMPLE_ROWS 64
#define SAMPLE_THREADS 512
#define SAMPLE_SHARED 33112
/* Threads of a block of add_guidance. */
#define GUIDANCE_THREADS 1024
/* Copies of one launch of copy_pages. */
#define PAGE_COPIES 256

/* The upper half of an f32. */
typedef struct bf16 {
  unsigned short bits;
} bf16;

/* One K/V pool: [layers, pages, kv_heads, 2 (K, V), PAGE_LEN, head_dim]. */
typedef struct PoolParams {
  unsigned layers;
  unsigned pages;
  unsigned query_heads;
  unsigned kv_heads;
  unsigned head_dim;
} PoolParams;

typedef struct EmbedParams {
  const unsigned *tokens; /* [rows] */
  const bf16 *table;      /* [vocab, width] */
  float *out;             /* [rows, width] */
  unsigned width;
} EmbedParams;

typedef struct EmbedAddParams {
  const unsigned *positions; /* [rows] */
  const bf16 *table;         /* [positions, width] */
  float *x;                  /* [rows, width] */
  unsigned width;
} EmbedAddParams;

typedef struct RmsNormParams {
  const float *x;      /* [rows, width] */
  const float *weight; /* [width] */
  bf16 *out;           /* [rows, width] */
  unsigned width;
  float eps;
} RmsNormParams;

typedef struct LayerNormParams {
  const float *x;      /* [rows, width] */
  const float *weight; /* [width] */
  const float *bias;   /* [width] */
  bf16 *out;           /* [rows, width] */
  unsigned width;
  float eps;
} LayerNormParams;

/* x · weightᵀ, shared by matmul, matmul_add, logits and logprobs. */
typedef struct ProductParams {
  const bf16 *x;      /* [rows, inputs] */
  const bf16 *weight; /* [outputs, inputs] */
  unsigned rows;
  unsigned inputs;
  unsigned outputs;
} ProductParams;

typedef struct MatmulParams {
  ProductParams product;
  const float *bias; /* [outputs] or null */
  bf16 *out;         /* [rows, outputs] */
} MatmulParams;

typedef struct MatmulAddParams {
  ProductParams product;
  const float *bias; /* [outputs] or null */
  float *residual;   /* [rows, outputs] */
} MatmulAddParams;

typedef struct LogitsParams {
  ProductParams product;
  float *out; /* [rows, outputs] */
} LogitsParams;

typedef struct LogprobsParams {
  ProductParams product;
  const unsigned *starts;  /* [rows + 1] where each row's entries are listed */
  const unsigned *entries; /* [entries] */
  const unsigned *targets; /* [entries] */
  float *maxima;           /* [rows, tiles] largest logit of a tile of the vocabulary */
  float *sums;             /* [rows, tiles] sum of e^(logit - largest) */
  float *out;              /* [entries], the target's logit at first */
  unsigned tiles;
} LogprobsParams;

typedef struct RopeParams {
  const unsigned *positions; /* [rows] */
  const float *cos_sin;      /* [positions, head_dim] */
  bf16 *qkv;                 /* [rows, (query_heads + 2 kv_heads) * head_dim] */
  unsigned query_heads;
  unsigned kv_heads;
  unsigned head_dim;
} RopeParams;

typedef struct StoreKvParams {
  const bf16 *qkv;         /* [rows, (query_heads + 2 kv_heads) * head_dim] */
  const unsigned *starts;  /* [rows + 1] where each row's entries are listed */
  const unsigned *entries; /* [entries] */
  const unsigned *slots;   /* [entries] page * PAGE_LEN + offset, or NO_SLOT */
  bf16 *pool;
  PoolParams shape;
  unsigned layer;
} StoreKvParams;

typedef struct PageCopyParams {
  unsigned from;
  unsigned to;
} PageCopyParams;

typedef struct CopyPagesParams {
  bf16 *pool;
  PoolParams shape;
  PageCopyParams copies[PAGE_COPIES];
} CopyPagesParams;

typedef struct AttentionParams {
  const bf16 *qkv;              /* [rows, (query_heads + 2 kv_heads) * head_dim] */
  const bf16 *pool;
  const unsigned *positions;    /* [rows] */
  const unsigned *row_segments; /* [rows] */
  const unsigned *tables;       /* [segments, table_stride] page ids */
  bf16 *out;                    /* [rows, query_heads * head_dim] */
  float *partial;               /* [rows, query_heads, splits, head_dim + 2]: sums, max, mass */
  PoolParams shape;
  unsigned rows;
  unsigned layer;
  unsigned table_stride;
  unsigned window; /* positions that a row sees at most; 0: all */
  unsigned splits; /* of the longest row */
  unsigned tile;   /* queries of a block, at most those of its kernel */
  float scale;
} AttentionParams;

typedef struct SiluGateParams {
  const bf16 *gate_up; /* [rows, 2 * width] */
  bf16 *out;           /* [rows, width] */
  unsigned width;
} SiluGateParams;

typedef struct GeluParams {
  bf16 *x; /* [len] */
  unsigned len;
} GeluParams;

typedef struct AddGuidanceParams {
  const float *tuned;   /* [rows, vocab] */
  const float *untuned; /* [rows, vocab] */
  float *logits;        /* [rows, vocab] */
  unsigned vocab;
  float weight;
} AddGuidanceParams;

typedef struct SampleRowParams {
  unsigned logits; /* the row of logits to draw from */
  float temperature;
  unsigned top_k;
  float top_p;
  unsigned candidate;
  unsigned position;
  unsigned stream[2]; /* low, high */
  unsigned seed[2];   /* low, high */
} SampleRowParams;

typedef struct SampleParams {
  const float *logits; /* [_, vocab] */
  unsigned *tokens;    /* [rows] */
  unsigned vocab;
  SampleRowParams rows[SAMPLE_ROWS];
} SampleParams;

typedef struct AdvanceParams {
  const unsigned *drawn;  /* [rows] */
  const unsigned *ends;   /* [end_count] */
  const unsigned *tables; /* [rows, table_stride] page ids */
  unsigned *tokens;       /* [rows] */
  unsigned *positions;    /* [rows] */
  unsigned *slots;        /* [rows] page * PAGE_LEN + offset, or NO_SLOT */
  unsigned *history;      /* [steps, rows] */
  unsigned rows;
  unsigned step;
  unsigned end_count;
  unsigned table_stride;
} AdvanceParams;

#endif

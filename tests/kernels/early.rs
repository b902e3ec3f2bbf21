//! Kernels one behind the other, as in a step: one that starts before the one in front of it is done
//! must wait by itself for what that one writes.

use trimtab::backend::cuda::CudaBackend;
use trimtab::backend::{Backend, Entries, Heads, PAGE_LEN, PoolShape};
use trimtab::tensor::bf16;

use crate::harness::*;

/// By kernels for few rows, and by wide ones.
const ROWS: [usize; 2] = [5, 20];
const HEADS: Heads = Heads { query: 2, kv: 1, dim: 16 };
const WIDTH: usize = 32;
const SHAPE: PoolShape = PoolShape { layers: 1, pages: 2, heads: HEADS };

/// What a small layer leaves behind.
struct Left {
    x: Vec<f32>,
    normed: Vec<bf16>,
    pool: Vec<bf16>,
}

/// Two layers without attention, all of them launched before anything is read.
fn run<B: Backend>(backend: &B, rows: usize) -> Left {
    let mut random = Random::new(5);
    let mut weights = |rows, cols| matrix(backend, rows, cols, &random.halves(rows * cols, 0.3));
    let table = weights(20, WIDTH);
    let (qkv_weight, out_weight) = (weights(HEADS.qkv_width(), WIDTH), weights(WIDTH, WIDTH));
    let (scale, bias) = (random.numbers(WIDTH, 2.0), random.numbers(WIDTH, 1.0));
    let (scale, bias) = (upload(backend, &scale), upload(backend, &bias));
    let tokens = upload(backend, &random.indices(rows, 20));
    let slots = random.shuffled(SHAPE.pages * PAGE_LEN)[..rows].to_vec();
    let (slots, [starts, list]) = (upload(backend, &slots), Listed::own(rows).upload(backend));
    let mut x = upload(backend, &vec![1.0f32; rows * WIDTH]);
    let mut normed = upload(backend, &vec![bf16::ONE; rows * WIDTH]);
    let mut qkv = upload(backend, &vec![bf16::ONE; rows * HEADS.qkv_width()]);
    let mut pool = upload(backend, &vec![bf16::ONE; SHAPE.len()]);
    backend.embed(rows, &tokens, &table, &mut x).unwrap();
    for _ in 0..2 {
        backend.rms_norm(rows, &x, &scale, 1e-5, &mut normed).unwrap();
        backend.matmul(rows, &normed, &qkv_weight, None, &mut qkv).unwrap();
        let entries = Entries { rows, starts: &starts, list: &list };
        backend.store_kv(0, SHAPE, &qkv, entries, &slots, &mut pool).unwrap();
        backend.matmul_add(rows, &normed, &out_weight, None, &mut x).unwrap();
        backend.layer_norm(rows, &x, &scale, &bias, 1e-5, &mut normed).unwrap();
        backend.matmul_add(rows, &normed, &out_weight, None, &mut x).unwrap();
    }
    backend.layer_norm(rows, &x, &scale, &bias, 1e-5, &mut normed).unwrap();
    let (x, normed) = (download(backend, &x), download(backend, &normed));
    Left { x, normed, pool: download(backend, &pool) }
}

/// Goal: under every order of the emulator, early starts or not, kernels see what those before them
/// wrote, and the bits are the same.
#[test]
fn early_kernels_see_what_the_one_before_wrote() {
    for rows in ROWS {
        let oracle = run(&Oracle, rows);
        for (name, backend) in gpus() {
            check(&name, &run(&backend, rows), &oracle);
        }
        if emulators().is_empty() {
            continue;
        }
        let first = run(&CudaBackend::emulated(0).unwrap(), rows);
        check("emulator, order 0", &first, &oracle);
        for seed in 1..20 {
            let name = format!("emulator, order {seed}, {rows} rows");
            let left = run(&CudaBackend::emulated(seed).unwrap(), rows);
            assert_close(&name, &left.x, &first.x, 0.0, 0.0);
            assert_close(&name, &left.normed, &first.normed, 0.0, 0.0);
            assert_close(&name, &left.pool, &first.pool, 0.0, 0.0);
        }
    }
}

/// Each of four roundings to bf16 between the token and the end may fall to the other side.
fn check(name: &str, ours: &Left, oracle: &Left) {
    assert_close(name, &ours.x, &oracle.x, 4.0 * BF16, 0.1);
    assert_close(name, &ours.normed, &oracle.normed, 4.0 * BF16, 0.1);
    assert_close(name, &ours.pool, &oracle.pool, 4.0 * BF16, 0.1);
}

use crate::harness::*;
use trimtab::backend::{Backend, Heads, NO_SLOT, PAGE_LEN, PoolShape};
use trimtab::tensor::bf16;

fn run<B: Backend>(backend: &B, rows: usize, shape: PoolShape, layer: usize) -> Vec<bf16> {
    let mut random = Random::new(rows as u64);
    let qkv = upload(backend, &random.halves(rows * shape.heads.qkv_width(), 1.0));
    let mut slots = random.shuffled(shape.pages * PAGE_LEN)[..rows].to_vec();
    // Rows that have ended.
    slots.iter_mut().skip(1).step_by(3).for_each(|slot| *slot = NO_SLOT);
    let mut pool = upload(backend, &vec![bf16::ONE; shape.len()]);
    backend.store_kv(rows, layer, shape, &qkv, &upload(backend, &slots), &mut pool).unwrap();
    download(backend, &pool)
}

/// Goal: keys and values in their slots of one layer, and nothing else touched; rows without a slot
/// write nothing.
#[test]
fn store_kv_writes_slots() {
    on_every_backend!(|name, backend| {
        for (query, kv, dim) in [(1, 1, 1), (4, 2, 16), (6, 3, 5)] {
            let shape = PoolShape { layers: 3, pages: 4, heads: Heads { query, kv, dim } };
            for (layer, rows) in [0, 1, 2, 0, 1, 2, 1].into_iter().zip(ROWS) {
                let ours = run(&backend, rows, shape, layer);
                assert_close(&name, &ours, &run(&Oracle, rows, shape, layer), 0.0, 0.0);
            }
        }
    });
}

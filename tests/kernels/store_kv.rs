use crate::harness::*;
use trimtab::backend::{Backend, Entries, Heads, NO_SLOT, PAGE_LEN, PoolShape};
use trimtab::tensor::bf16;

fn run<B: Backend>(backend: &B, rows: usize, shape: PoolShape, layer: usize) -> Vec<bf16> {
    let mut random = Random::new(rows as u64);
    let qkv = upload(backend, &random.halves(rows * shape.heads.qkv_width(), 1.0));
    let entries = Listed::random(rows, &mut random);
    let mut slots = random.shuffled(shape.pages * PAGE_LEN)[..entries.list.len()].to_vec();
    // Of rows that have ended.
    slots.iter_mut().skip(1).step_by(3).for_each(|slot| *slot = NO_SLOT);
    let mut pool = upload(backend, &vec![bf16::ONE; shape.len()]);
    let [starts, list] = entries.upload(backend);
    let entries = Entries { rows, starts: &starts, list: &list };
    let slots = upload(backend, &slots);
    backend.store_kv(layer, shape, &qkv, entries, &slots, &mut pool).unwrap();
    download(backend, &pool)
}

/// Goal: keys and values in the slots of all their entries in one layer, and nothing else touched;
/// entries without a slot write nothing.
#[test]
fn store_kv_writes_slots() {
    on_every_backend!(|name, backend| {
        for (query, kv, dim) in [(1, 1, 1), (4, 2, 16), (6, 3, 5)] {
            let shape = PoolShape { layers: 3, pages: 9, heads: Heads { query, kv, dim } };
            for (layer, rows) in [0, 1, 2, 0, 1, 2, 1].into_iter().zip(ROWS) {
                let ours = run(&backend, rows, shape, layer);
                assert_close(&name, &ours, &run(&Oracle, rows, shape, layer), 0.0, 0.0);
            }
        }
    });
}

use crate::harness::*;
use trimtab::backend::{Backend, Heads};
use trimtab::tensor::bf16;

fn run<B: Backend>(backend: &B, rows: usize, heads: Heads) -> Vec<bf16> {
    let mut random = Random::new((rows * heads.dim) as u64);
    let table: Vec<f32> = (0..50)
        .flat_map(|position| {
            let angles = (0..heads.dim / 2).map(move |i| position as f32 / (i + 1) as f32);
            angles.clone().map(f32::cos).chain(angles.map(f32::sin))
        })
        .collect();
    let mut qkv = upload(backend, &random.halves((rows + 1) * heads.qkv_width(), 2.0));
    let positions = upload(backend, &random.indices(rows, 50));
    backend.rope(rows, heads, &positions, &upload(backend, &table), &mut qkv).unwrap();
    download(backend, &qkv)
}

/// Goal: queries and keys turn, values stay. Both products are below 2, and may cancel: two f32
/// roundings remain as an absolute error.
#[test]
fn rope_agrees_with_the_oracle() {
    on_every_backend!(|name, backend| {
        for (query, kv, dim) in [(1, 1, 2), (4, 2, 16), (3, 1, 80), (8, 8, 8), (2, 1, 64)] {
            let heads = Heads { query, kv, dim };
            for rows in ROWS {
                assert_close(
                    &name,
                    &run(&backend, rows, heads),
                    &run(&Oracle, rows, heads),
                    BF16,
                    1e-6,
                );
            }
        }
    });
}

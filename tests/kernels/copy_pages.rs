use crate::harness::*;
use trimtab::backend::{Backend, Heads, PoolShape};
use trimtab::tensor::bf16;

fn run<B: Backend>(backend: &B, shape: PoolShape, copies: &[(u32, u32)]) -> Vec<bf16> {
    let mut pool = upload(backend, &Random::new(3).halves(shape.len(), 1.0));
    backend.copy_pages(shape, copies, &mut pool).unwrap();
    download(backend, &pool)
}

/// Goal: whole pages in all layers, one source for several targets, nothing else touched.
#[test]
fn copy_pages_copies_all_layers() {
    let shape = PoolShape { layers: 3, pages: 9, heads: Heads { query: 4, kv: 2, dim: 6 } };
    on_every_backend!(|name, backend| {
        for copies in [&[][..], &[(0, 8)], &[(3, 1), (3, 0), (2, 7), (8, 6)]] {
            assert_close(
                &name,
                &run(&backend, shape, copies),
                &run(&Oracle, shape, copies),
                0.0,
                0.0,
            );
        }
    });
}

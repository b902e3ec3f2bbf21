//! Floor 1: the counter-based random numbers that sampling draws from.
//!
//! Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011). A draw is a pure function of where it is used, so results depend neither on the
//! batch nor on the number of threads.

/// Names the one random number that picks one token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Draw {
    /// The user's seed.
    pub seed: u64,
    /// The search, derived from its prompt.
    pub stream: u64,
    /// The candidate's place in its step, `0..beam_width * successors`.
    pub candidate: u32,
    /// The token's place in the response, from 0.
    pub position: u32,
}

impl Draw {
    /// The draw as 32 random bits.
    pub fn bits(self) -> u32 {
        let counter =
            [self.candidate, self.position, self.stream as u32, (self.stream >> 32) as u32];
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        philox4x32(counter, key)[0]
    }

    /// The draw as a number in `[0, 1)` with 24 random bits, so it is exact in f32.
    pub fn uniform(self) -> f32 {
        (self.bits() >> 8) as f32 * (1.0 / (1 << 24) as f32)
    }
}

/// Ten rounds of Philox4x32.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that Random123 ships (kat_vectors, philox4x32 10).
    #[test]
    fn philox_gives_the_known_answers() {
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniform_draws_fill_the_unit_interval_evenly() {
        let mut bins = [0u32; 16];
        for position in 0..4096 {
            let draw = Draw { seed: 1, stream: 7, candidate: 3, position };
            bins[(draw.uniform() * 16.0) as usize] += 1;
        }
        assert!(bins.iter().all(|&n| (176..=336).contains(&n)), "expected about 256: {bins:?}");
    }
}

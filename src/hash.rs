//! Floor 1: a hash that names things, the same on every machine.

/// FNV-1a of 64 bits. Not against malice.
#[derive(Clone, Copy, Debug)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    /// One that begins elsewhere for each seed.
    pub fn seeded(seed: u64) -> Self {
        Self(Self::default().0 ^ seed)
    }

    /// Takes in some bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Takes in many bytes.
    pub fn add_many(&mut self, many: Many) {
        many.lanes.iter().for_each(|lane| self.add(&lane.to_le_bytes()));
        self.add(&many.rest);
    }

    /// The hash of all bytes so far.
    pub fn finish(self) -> u64 {
        self.0
    }
}

/// Many bytes, read part by part: four words side by side, as fast as memory is read.
#[derive(Clone, Debug)]
pub struct Many {
    lanes: [u64; 4],
    /// What is left over behind the last whole block.
    rest: Vec<u8>,
}

impl Default for Many {
    fn default() -> Self {
        Self { lanes: [1, 2, 3, 4], rest: Vec::new() }
    }
}

impl Many {
    /// Takes in the next part; only the last one may have another length than a multiple of 32.
    pub fn add(&mut self, part: &[u8]) {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        assert!(self.rest.is_empty(), "a part follows the last one");
        let (blocks, rest) = part.as_chunks::<32>();
        for block in blocks {
            for (lane, word) in self.lanes.iter_mut().zip(block.as_chunks::<8>().0) {
                // The turn brings a word's upper bits to where the next product mixes them.
                let mixed = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(ODD);
                *lane = mixed.rotate_left(31);
            }
        }
        self.rest = rest.to_vec();
    }
}

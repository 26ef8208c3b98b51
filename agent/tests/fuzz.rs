//! The decoders' targets, without the fuzzer: seeds, what it once found (`tests/regressions/TARGET`), and both bent a
//! little, always in the same way.

mod targets;

use std::path::Path;

/// Chance that is the same each time (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }
}

fn bend(data: &mut Vec<u8>, chance: &mut Chance) {
    for _ in 0..=chance.below(4) {
        let at = chance.below(data.len());
        match chance.below(5) {
            0 if !data.is_empty() => data[at] ^= 1 << chance.below(8),
            1 if !data.is_empty() => data[at] = [0, 0xff, 0x7f, b'/', b'0'][chance.below(5)],
            2 => data.truncate(at),
            3 => data.insert(at, chance.below(256) as u8),
            _ => {
                let piece = data[at..data.len().min(at + chance.below(600))].to_vec();
                let to = chance.below(data.len());
                data.splice(to..to, piece);
            }
        }
    }
}

#[test]
fn nothing_breaks_a_decoder() {
    let regressions = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/regressions");
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    for (name, target) in targets::ALL {
        // One that unpacks makes files.
        let bent = if name == "tar_unpack" { 100 } else { 300 };
        let mut inputs = targets::seeds(name);
        for file in std::fs::read_dir(regressions.join(name))
            .into_iter()
            .flatten()
        {
            inputs.push(std::fs::read(file.expect("a file").path()).expect("its content"));
        }
        for input in inputs {
            target(&input);
            for _ in 0..bent {
                let mut other = input.clone();
                bend(&mut other, &mut chance);
                target(&other);
            }
        }
    }
}

//! What is kept of one output stream: its first bytes (head) and its last (a ring), and the count of all.
//!
//! Bytes are read straight into place, so output that falls out costs one copy out of the pipe and no more.
//! The ring's memory grows with what is in it up to its capacity.

const FIRST: usize = 16 * 1024;

#[derive(Debug, Default)]
pub struct Ring {
    head: Vec<u8>,
    head_capacity: usize,
    tail: Vec<u8>,
    tail_capacity: usize,
    total: u64,
}

/// A piece of a stream, found from an offset on.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    pub dropped: u64,
    pub offset: u64,
    pub data: &'a [u8],
}

impl Ring {
    pub fn new(head_capacity: usize, tail_capacity: usize) -> Ring {
        Ring {
            head_capacity,
            tail_capacity: tail_capacity.max(1),
            ..Ring::default()
        }
    }

    /// Bytes produced in all.
    pub fn total(&self) -> u64 {
        self.total
    }

    pub fn memory(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// Offset of the oldest byte in the tail.
    fn tail_start(&self) -> u64 {
        let head = self.head_capacity as u64;
        head.max(self.total.saturating_sub(self.tail_capacity as u64))
            .min(self.total.max(head))
    }

    fn position(&self, offset: u64) -> usize {
        ((offset - self.head_capacity as u64) % self.tail_capacity as u64) as usize
    }

    /// How many bytes may come before byte `keep_from` would fall out.
    pub fn room(&self, keep_from: u64) -> u64 {
        let kept = keep_from.max(self.head_capacity as u64);
        (kept + self.tail_capacity as u64).saturating_sub(self.total)
    }

    /// Lets `read` put up to `limit` bytes (> 0) where the next ones belong; it returns how many it put.
    pub fn fill<E>(
        &mut self,
        limit: u64,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let in_head = self.head_capacity - (self.total as usize).min(self.head_capacity);
        let space = if self.total < self.head_capacity as u64 {
            let start = self.total as usize;
            let wanted = in_head.min(limit).min(start.max(FIRST));
            if self.head.len() < start + wanted {
                self.head.resize(start + wanted, 0);
            }
            &mut self.head[start..start + wanted]
        } else {
            let start = self.position(self.total);
            if start == self.tail.len() {
                let grown = (self.tail.len() * 2).max(FIRST).min(self.tail_capacity);
                self.tail.resize(grown, 0);
            }
            let end = self.tail.len().min(start.saturating_add(limit));
            &mut self.tail[start..end]
        };
        let count = read(space)?;
        self.total += count as u64;
        Ok(count)
    }

    pub fn push(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let filled = self.fill(data.len() as u64, |space| {
                let count = space.len().min(data.len());
                space[..count].copy_from_slice(&data[..count]);
                Ok::<_, std::convert::Infallible>(count)
            });
            let Ok(count) = filled;
            data = &data[count..];
        }
    }

    /// The first piece at or after `offset`; None when there is nothing from there on yet.
    pub fn piece(&self, offset: u64, limit: usize) -> Option<Piece<'_>> {
        if offset >= self.total {
            return None;
        }
        let head_end = self.total.min(self.head_capacity as u64);
        if offset < head_end {
            let start = offset as usize;
            let end = (head_end as usize).min(start + limit);
            return Some(Piece {
                dropped: 0,
                offset,
                data: &self.head[start..end],
            });
        }
        let from = offset.max(self.tail_start());
        let start = self.position(from);
        let length = ((self.total - from) as usize)
            .min(self.tail.len() - start)
            .min(limit);
        let data = &self.tail[start..start + length];
        Some(Piece {
            dropped: from - offset,
            offset: from,
            data,
        })
    }

    /// Everything kept, in at most `budget` bytes, and whether that is less than all that was produced.
    pub fn snapshot(&self, budget: usize) -> (Vec<u8>, bool) {
        let head = (self.total.min(self.head_capacity as u64) as usize).min(budget / 2);
        let whole_head = self.total.min(self.head_capacity as u64) as usize;
        let kept = whole_head as u64
            + (self.total.max(whole_head as u64) - self.tail_start().min(self.total));
        let fits = kept <= budget as u64;
        let mut out = Vec::with_capacity((kept as usize).min(budget));
        let head = if fits { whole_head } else { head };
        self.copy(0, head, &mut out);
        let rest = budget - out.len();
        let from = (out.len() as u64).max(self.total.saturating_sub(rest as u64));
        let from = if from > whole_head as u64 {
            from.max(self.tail_start())
        } else {
            from
        };
        self.copy(from, rest, &mut out);
        let truncated = (out.len() as u64) < self.total;
        (out, truncated)
    }

    fn copy(&self, mut offset: u64, mut limit: usize, out: &mut Vec<u8>) {
        while limit > 0 {
            let Some(piece) = self.piece(offset, limit) else {
                return;
            };
            out.extend_from_slice(piece.data);
            limit -= piece.data.len();
            offset = piece.offset + piece.data.len() as u64;
        }
    }

    /// Gives back what growth took too much, for a stream that has ended.
    pub fn shrink(&mut self) {
        if self.total <= self.head_capacity as u64 {
            self.head.truncate(self.total as usize);
        } else {
            let used = self.total - self.head_capacity as u64;
            if used < self.tail.len() as u64 {
                self.tail.truncate(used as usize);
            }
        }
        self.head.shrink_to_fit();
        self.tail.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(head: usize, tail: usize, total: usize) -> (Ring, Vec<u8>) {
        let all: Vec<u8> = (0..total).map(|index| (index * 7 % 251) as u8).collect();
        let mut ring = Ring::new(head, tail);
        for piece in all.chunks(13) {
            ring.push(piece);
        }
        (ring, all)
    }

    #[test]
    fn keeps_both_ends_whatever_the_sizes() {
        for (head, tail) in [(0, 1), (0, 10), (5, 10), (40_000, 50_000), (10, 100)] {
            for total in [0, 1, 4, 5, 6, 14, 15, 16, 100, 99_999] {
                let (ring, all) = filled(head, tail, total);
                let (kept, truncated) = ring.snapshot(usize::MAX);
                let head_part = &all[..total.min(head)];
                let tail_part = &all[total.min(head).max(total.saturating_sub(tail))..];
                assert_eq!(
                    kept,
                    [head_part, tail_part].concat(),
                    "{head} {tail} {total}"
                );
                assert_eq!(truncated, total > head + tail);
                assert_eq!(ring.total(), total as u64);
            }
        }
    }

    #[test]
    fn a_budget_cuts_the_middle() {
        let (ring, all) = filled(100, 1000, 900);
        let (kept, truncated) = ring.snapshot(300);
        assert!(truncated);
        assert_eq!(kept.len(), 300);
        assert_eq!(kept[..100], all[..100]);
        assert_eq!(kept[100..], all[700..]);
        let (ring, all) = filled(0, 1000, 900);
        let (kept, truncated) = ring.snapshot(300);
        assert!(truncated);
        assert_eq!(kept, all[600..]);
    }

    #[test]
    fn pieces_report_what_fell_out() {
        let (ring, all) = filled(4, 8, 100);
        assert_eq!(
            ring.piece(1, 99),
            Some(Piece {
                dropped: 0,
                offset: 1,
                data: &all[1..4]
            })
        );
        let piece = ring.piece(4, 99).expect("a tail");
        assert_eq!((piece.dropped, piece.offset), (88, 92));
        assert_eq!(ring.piece(100, 9), None);
        assert_eq!(ring.piece(101, 9), None);
        let mut offset = 92;
        let mut got = Vec::new();
        while let Some(piece) = ring.piece(offset, 3) {
            got.extend_from_slice(piece.data);
            offset += piece.data.len() as u64;
        }
        assert_eq!(got, all[92..]);
    }

    #[test]
    fn room_is_what_keeps_a_reader_whole() {
        let (ring, _) = filled(4, 8, 10);
        assert_eq!(ring.room(0), 2);
        assert_eq!(ring.room(10), 8);
        let (ring, _) = filled(4, 8, 30);
        assert_eq!(ring.room(22), 0);
        assert_eq!(ring.room(0), 0);
    }

    #[test]
    fn memory_stays_within_the_capacity() {
        let mut ring = Ring::new(1000, 1 << 20);
        ring.push(b"x");
        assert!(ring.memory() <= FIRST);
        for _ in 0..100 {
            ring.push(&[0; 100_000]);
        }
        assert!(ring.memory() <= 1000 + (1 << 20));
        let mut small = Ring::new(0, 1 << 20);
        small.push(b"abc");
        small.shrink();
        assert_eq!(small.memory(), 3);
        assert_eq!(small.snapshot(10), (b"abc".to_vec(), false));
    }
}

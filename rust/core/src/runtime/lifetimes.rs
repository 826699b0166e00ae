//! Who uses which memory when, and where in the arena it goes.

use super::plan::lines_for;

/// Memory of the arena: a tensor's, or the scratch of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Storage(usize),
    Scratch(usize),
}

/// One block of memory.
#[derive(Debug, Clone, Copy)]
struct Block {
    lines: usize,
    first: usize,
    last: usize,
    start: usize,
}

/// Lifetimes of all memory of a segment, in steps.
pub(super) struct Lifetimes {
    /// Per storage: its block.
    blocks: Vec<Block>,
    /// Per storage: the storage whose memory it has taken over.
    parent: Vec<usize>,
    /// Per step.
    scratch: Vec<Option<Block>>,
    /// Per step: the input that is overwritten.
    in_place: Vec<Option<usize>>,
    lines: usize,
}

impl Lifetimes {
    pub(super) fn new(sizes: &[usize]) -> Self {
        let block = |&bytes: &usize| Block { lines: lines_for(bytes), first: usize::MAX, last: 0, start: 0 };
        Self {
            blocks: sizes.iter().map(block).collect(),
            parent: (0..sizes.len()).collect(),
            scratch: Vec::new(),
            in_place: Vec::new(),
            lines: 0,
        }
    }

    pub(super) fn produce(&mut self, storage: usize, step: usize) {
        let block = &mut self.blocks[storage];
        block.first = block.first.min(step);
        block.last = block.last.max(step);
    }

    pub(super) fn consume(&mut self, storage: usize, step: usize) {
        let block = &mut self.blocks[storage];
        block.last = block.last.max(step);
    }

    /// The storage is needed after the last step.
    pub(super) fn keep(&mut self, storage: usize) {
        self.blocks[storage].last = usize::MAX;
    }

    /// Steps must be told in order.
    pub(super) fn scratch(&mut self, step: usize, bytes: usize) {
        let block = Block { lines: lines_for(bytes), first: step, last: step, start: 0 };
        self.scratch.push((bytes > 0).then_some(block));
        self.in_place.push(None);
    }

    fn root(&self, mut storage: usize) -> usize {
        while self.parent[storage] != storage {
            storage = self.parent[storage];
        }
        storage
    }

    /// Whether two storages have come to share their memory.
    pub(super) fn same(&self, a: usize, b: usize) -> bool {
        self.root(a) == self.root(b)
    }

    /// Lets `target`, made by `step`, take over the memory of `source`, if `step` is its last use.
    pub(super) fn take_over(&mut self, target: usize, source: usize, step: usize, input: usize) -> bool {
        let source = self.root(source);
        let taken = self.blocks[target];
        let fits = self.blocks[source].last == step && self.blocks[source].lines == taken.lines;
        if fits && self.parent[target] == target && source != target {
            self.parent[target] = source;
            self.blocks[source].last = taken.last;
            self.in_place[step] = Some(input);
            return true;
        }
        false
    }

    /// Places all blocks: large ones first, each into the lowest gap that is free during its life.
    pub(super) fn assign_offsets(&mut self) {
        let mut order: Vec<Use> = (0..self.blocks.len())
            .filter(|&s| self.parent[s] == s && self.blocks[s].first != usize::MAX)
            .map(Use::Storage)
            .chain((0..self.scratch.len()).filter(|&s| self.scratch[s].is_some()).map(Use::Scratch))
            .collect();
        order.sort_by_key(|&used| {
            let block = self.block(used);
            (std::cmp::Reverse(block.lines), block.first)
        });
        let mut placed: Vec<Block> = Vec::with_capacity(order.len());
        for used in order {
            let mut block = self.block(used);
            let mut start = 0;
            // `placed` is sorted by start, so the first gap that is large enough is the lowest.
            for other in placed.iter().filter(|o| o.first <= block.last && block.first <= o.last) {
                if start + block.lines <= other.start {
                    break;
                }
                start = start.max(other.start + other.lines);
            }
            block.start = start;
            self.lines = self.lines.max(start + block.lines);
            let position = placed.partition_point(|other| other.start <= start);
            placed.insert(position, block);
            match used {
                Use::Storage(storage) => self.blocks[storage] = block,
                Use::Scratch(step) => self.scratch[step] = Some(block),
            }
        }
    }

    fn block(&self, used: Use) -> Block {
        match used {
            Use::Storage(storage) => self.blocks[self.root(storage)],
            Use::Scratch(step) => {
                self.scratch[step].unwrap_or(Block { lines: 0, first: step, last: step, start: 0 })
            }
        }
    }

    /// Start and length in lines.
    pub(super) fn range(&self, used: Use) -> (usize, usize) {
        let block = self.block(used);
        (block.start, block.lines)
    }

    pub(super) fn byte_offset(&self, storage: usize) -> usize {
        self.blocks[self.root(storage)].start * super::arena::LINE_BYTES
    }

    pub(super) fn in_place(&self, step: usize) -> Option<usize> {
        self.in_place[step]
    }

    /// Lines of the arena.
    pub(super) fn lines(&self) -> usize {
        self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_needs_two_buffers() {
        let mut memory = Lifetimes::new(&[640; 10]);
        for step in 0..10 {
            memory.produce(step, step);
            memory.scratch(step, 0);
            if step > 0 {
                memory.consume(step - 1, step);
            }
        }
        memory.assign_offsets();
        assert_eq!(memory.lines(), 20);
    }

    #[test]
    fn taking_over_needs_the_last_use() {
        let mut memory = Lifetimes::new(&[64, 64, 64]);
        for step in 0..3 {
            memory.produce(step, step);
            memory.scratch(step, 0);
        }
        memory.consume(0, 1);
        memory.consume(0, 2);
        assert!(!memory.take_over(1, 0, 1, 0));
        assert!(memory.take_over(2, 0, 2, 0));
        assert!(memory.same(0, 2) && !memory.same(0, 1));
        memory.assign_offsets();
        assert_eq!(memory.lines(), 2);
    }

    #[test]
    fn kept_memory_is_not_reused() {
        let mut memory = Lifetimes::new(&[64, 64]);
        memory.produce(0, 0);
        memory.scratch(0, 100);
        memory.keep(0);
        memory.produce(1, 1);
        memory.scratch(1, 0);
        memory.assign_offsets();
        assert_ne!(memory.byte_offset(0), memory.byte_offset(1));
    }
}

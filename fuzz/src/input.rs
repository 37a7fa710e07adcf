//! Bytes as a row of choices. Where they are used up, every further choice is the first one.

/// What is left of the input.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Bytes as they stand in the input.
    pub(crate) fn raw(&mut self) -> &'a [u8] {
        let n = usize::from(self.byte()).min(self.0.len());
        let (raw, rest) = self.0.split_at(n);
        self.0 = rest;
        raw
    }

    pub(crate) fn is_used_up(&self) -> bool {
        self.0.is_empty()
    }
}

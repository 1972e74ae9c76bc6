//! Stands in for grammars in a build without them: every form is refused by name.

use std::sync::Arc;

use fsq_model::{Constraint, Tokenizer};

use crate::form::{Fault, Form};
use crate::refusal::Refusal;

/// Refuses forms.
#[derive(Debug)]
pub(crate) struct Grammars;

impl Grammars {
    pub(crate) fn new(_tokenizer: Arc<Tokenizer>, _vocab: usize) -> Self {
        Self
    }

    pub(crate) fn constraint(&self, form: &Form, _fault: &Fault) -> Result<Constraint, Refusal> {
        let message = "this build holds no answer to a form; one with the feature `grammar` does";
        Err(Refusal::unsupported(form.field(), message))
    }
}

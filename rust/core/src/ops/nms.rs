//! Choosing boxes: `NonMaxSuppressionV2`.

use std::cmp::Ordering;

use mnnq_format::schema::OpType;

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferError, InferResult, Kernel, Operator, PrepareContext};
use super::registry::OpSource;
use crate::runtime::parallel::Parallel;
use crate::tensor::{DType, Shape, Tensor, TensorView};

/// `NonMaxSuppressionV2(boxes, scores, max_output_size[, iou_threshold[, score_threshold]])`: the numbers of the boxes,
/// by falling score, that do not overlap a box chosen before by more than the threshold (intersection over union, 0.5
/// if absent) and whose score is above its threshold.
///
/// Boxes `[n, 4]` are two opposite corners `y1, x1, y2, x2` in any order; scores `[n]`; the result is INT32. With
/// boxes `[b, n, 4]` and scores `[b, classes, n]` every class of every image is treated by itself, and the result is
/// `[chosen, 3]`: image, class, box.
pub(super) struct NonMaxSuppression;

impl NonMaxSuppression {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        debug_assert_eq!(source.op_type, OpType::NonMaxSuppressionV2);
        Ok(Self)
    }
}

/// The shapes as `[images, boxes]` and classes.
fn counts(boxes: &Shape, scores: &Shape) -> OpResult<([usize; 2], usize)> {
    match (boxes.dims(), scores.dims()) {
        (&[n, 4], &[m]) if n == m => Ok(([1, n], 1)),
        (&[b, n, 4], &[c, classes, m]) if b == c && n == m => Ok(([b, n], classes)),
        (&[_, 4] | &[_, _, 4], _) => Err(OpError::shape(1, *scores, format!("scores of boxes {boxes}"))),
        _ => Err(OpError::shape(0, *boxes, "[boxes, 4] or [images, boxes, 4]")),
    }
}

fn threshold(inputs: &[Option<TensorView<'_>>], input: usize, default: f32) -> OpResult<f32> {
    match inputs.get(input).copied().flatten() {
        None => Ok(default),
        Some(view) if view.desc().dtype == DType::F32 => view
            .data::<f32>()
            .first()
            .copied()
            .ok_or_else(|| OpError::value(input, "no threshold in an empty tensor")),
        Some(view) => {
            Err(OpError::InputType { input, wanted: DType::F32.to_string(), got: view.desc().dtype })
        }
    }
}

/// Numbers of the chosen boxes.
fn choose(boxes: &[[f32; 4]], scores: &[f32], most: usize, overlap: f32, least: f32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..boxes.len()).filter(|&i| scores[i] > least).collect();
    order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap_or(Ordering::Equal));
    let mut chosen: Vec<usize> = Vec::new();
    for candidate in order {
        if chosen.len() >= most {
            break;
        }
        if chosen.iter().all(|&other| intersection_over_union(&boxes[candidate], &boxes[other]) <= overlap) {
            chosen.push(candidate);
        }
    }
    chosen
}

fn intersection_over_union(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let side = |v: &[f32; 4], i: usize| (v[i].min(v[i + 2]), v[i].max(v[i + 2]));
    let area = |v: &[f32; 4]| {
        let ((y1, y2), (x1, x2)) = (side(v, 0), side(v, 1));
        (y2 - y1) * (x2 - x1)
    };
    let common = |i: usize| {
        let ((a1, a2), (b1, b2)) = (side(a, i), side(b, i));
        (a2.min(b2) - a1.max(b1)).max(0.0)
    };
    let intersection = common(0) * common(1);
    let union = area(a) + area(b) - intersection;
    if union > 0.0 { intersection / union } else { 0.0 }
}

impl Operator for NonMaxSuppression {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let (boxes, scores) = (inputs.typed(0, DType::F32)?.shape, inputs.typed(1, DType::F32)?.shape);
        counts(&boxes, &scores)?;
        inputs.typed(2, DType::I32)?;
        Err(InferError::Dynamic)
    }

    fn prepare(&self, _: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        Err(OpError::unsupported("a plan without contents"))
    }

    fn evaluate(&self, inputs: &[Option<TensorView<'_>>], _: &Parallel) -> OpResult<Vec<Tensor>> {
        let view = |input: usize| inputs.get(input).copied().flatten().ok_or(OpError::MissingInput { input });
        let (boxes, scores) = (view(0)?, view(1)?);
        let ([images, n], classes) = counts(&boxes.shape(), &scores.shape())?;
        let most = view(2)?.data::<i32>().first().copied().unwrap_or(0);
        let most = usize::try_from(most).unwrap_or(0);
        let (overlap, least) = (threshold(inputs, 3, 0.5)?, threshold(inputs, 4, f32::NEG_INFINITY)?);
        let (corners, scores): (&[[f32; 4]], _) =
            (bytemuck::cast_slice(boxes.data::<f32>()), scores.data::<f32>());
        let single = boxes.shape().rank() == 2;
        let mut found = Vec::new();
        for image in 0..images {
            for class in 0..classes {
                let scores = &scores[(image * classes + class) * n..][..n];
                for chosen in choose(&corners[image * n..][..n], scores, most, overlap, least) {
                    if !single {
                        found.extend([image as i32, class as i32]);
                    }
                    found.push(chosen as i32);
                }
            }
        }
        let shape = if single { Shape::new(&[found.len()])? } else { Shape::new(&[found.len() / 3, 3])? };
        Ok(vec![Tensor::from_vec(shape, found)?])
    }
}

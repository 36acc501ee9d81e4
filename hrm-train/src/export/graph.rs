//! A graph under construction: nodes, constants, and the few integer idioms that the network is written in.
//!
//! ONNX has no arithmetic shift and its integer `Div` truncates, so a flooring shift of `x` is written with an offset that makes the
//! dividend non-negative: `(x + 2^o) / 2^k - 2^(o - k)`, `|x| < 2^o`, `k <= o`. It is exact in the width used.

use std::collections::HashMap;

use super::proto::{Attribute, Dimension, GraphProto, Node, Shape, Tensor, TensorType, Type, TypeInfo, ValueInfo};

/// Name of a tensor in the graph.
#[derive(Clone, Debug)]
pub(super) struct Value(String);

/// Attribute of a node.
pub(super) enum Attr<'a> {
    Int(&'a str, i64),
    Ints(&'a str, &'a [i64]),
}

#[derive(Default)]
pub(super) struct Graph {
    proto: GraphProto,
    scalars: HashMap<(Type, i64), Value>,
}

impl Graph {
    pub(super) fn input(&mut self, name: &str, ty: Type, dims: &[usize]) -> Value {
        self.proto.input.push(value_info(name, ty, dims));
        Value(name.to_owned())
    }

    /// Gives `value` its public name.
    pub(super) fn output(&mut self, value: &Value, name: &str, ty: Type, dims: &[usize]) {
        self.push("Identity", &[value], &[], name.to_owned());
        self.proto.output.push(value_info(name, ty, dims));
    }

    pub(super) fn finish(self, name: &str) -> GraphProto {
        GraphProto { name: name.to_owned(), ..self.proto }
    }

    /// A constant tensor; `values` must fit into `ty`.
    pub(super) fn constant(&mut self, ty: Type, dims: &[usize], values: impl IntoIterator<Item = i64>) -> Value {
        let mut raw_data = Vec::new();
        for v in values {
            match ty {
                Type::Int8 => raw_data.push(v as i8 as u8),
                Type::Int32 => raw_data.extend((v as i32).to_le_bytes()),
                Type::Int64 => raw_data.extend(v.to_le_bytes()),
                Type::Double => raw_data.extend((v as f64).to_le_bytes()),
            }
        }
        let name = format!("c{}", self.proto.initializer.len());
        let dims = dims.iter().map(|&d| d as i64).collect();
        self.proto.initializer.push(Tensor { dims, data_type: ty as i32, name: name.clone(), raw_data });
        Value(name)
    }

    /// A constant without dimensions; equal ones are stored once.
    pub(super) fn scalar(&mut self, ty: Type, value: i64) -> Value {
        if let Some(known) = self.scalars.get(&(ty, value)) {
            return known.clone();
        }
        let new = self.constant(ty, &[], [value]);
        self.scalars.insert((ty, value), new.clone());
        new
    }

    fn push(&mut self, op: &str, inputs: &[&Value], attributes: &[Attr<'_>], output: String) -> Value {
        let attribute = attributes
            .iter()
            .map(|a| match *a {
                Attr::Int(name, i) => Attribute { name: name.into(), i: Some(i), ints: Vec::new(), r#type: 2 },
                Attr::Ints(name, ints) => Attribute { name: name.into(), i: None, ints: ints.to_vec(), r#type: 7 },
            })
            .collect();
        self.proto.node.push(Node {
            input: inputs.iter().map(|v| v.0.clone()).collect(),
            output: vec![output.clone()],
            name: format!("{op}_{}", self.proto.node.len()),
            op_type: op.to_owned(),
            attribute,
        });
        Value(output)
    }

    pub(super) fn op(&mut self, op: &str, inputs: &[&Value], attributes: &[Attr<'_>]) -> Value {
        let name = format!("v{}", self.proto.node.len());
        self.push(op, inputs, attributes, name)
    }

    pub(super) fn add(&mut self, a: &Value, b: &Value) -> Value {
        self.op("Add", &[a, b], &[])
    }

    pub(super) fn mul(&mut self, a: &Value, b: &Value) -> Value {
        self.op("Mul", &[a, b], &[])
    }

    /// Quotient of non-negative integers, rounded down.
    pub(super) fn div(&mut self, a: &Value, b: &Value) -> Value {
        self.op("Div", &[a, b], &[])
    }

    pub(super) fn add_scalar(&mut self, ty: Type, a: &Value, b: i64) -> Value {
        if b == 0 {
            return a.clone();
        }
        let b = self.scalar(ty, b);
        self.add(a, &b)
    }

    pub(super) fn mul_scalar(&mut self, ty: Type, a: &Value, b: i64) -> Value {
        let b = self.scalar(ty, b);
        self.mul(a, &b)
    }

    pub(super) fn div_scalar(&mut self, ty: Type, a: &Value, b: i64) -> Value {
        let b = self.scalar(ty, b);
        self.div(a, &b)
    }

    pub(super) fn at_least(&mut self, ty: Type, a: &Value, bound: i64) -> Value {
        let bound = self.scalar(ty, bound);
        self.op("Max", &[a, &bound], &[])
    }

    pub(super) fn at_most(&mut self, ty: Type, a: &Value, bound: i64) -> Value {
        let bound = self.scalar(ty, bound);
        self.op("Min", &[a, &bound], &[])
    }

    pub(super) fn clamp(&mut self, ty: Type, a: &Value, low: i64, high: i64) -> Value {
        let a = self.at_least(ty, a, low);
        self.at_most(ty, &a, high)
    }

    pub(super) fn sat16(&mut self, ty: Type, a: &Value) -> Value {
        self.clamp(ty, a, i64::from(i16::MIN), i64::from(i16::MAX))
    }

    pub(super) fn cast(&mut self, a: &Value, to: Type) -> Value {
        self.op("Cast", &[a], &[Attr::Int("to", to as i64)])
    }

    /// `(a + addend) >> shift`, flooring. `|a|` is at most `2^offset_log2` and `2^offset_log2 + a + addend` fits into `ty`.
    pub(super) fn shift_down(&mut self, ty: Type, a: &Value, addend: i64, shift: u32, offset_log2: u32) -> Value {
        let raised = self.add_scalar(ty, a, addend + (1 << offset_log2));
        let quotient = self.div_scalar(ty, &raised, 1 << shift);
        self.add_scalar(ty, &quotient, -(1 << (offset_log2 - shift)))
    }

    /// `sat8((a + 2^14) >> 15)` of an `int32` product of two 16-bit numbers, as `int8`: views and hidden values.
    ///
    /// `a >= -2^15 * (2^15 - 1) > -2^30` and `a <= 2^15 * (2^15 - 1) < 2^30 - 2^14`: with the offset `2^30` nothing overflows.
    pub(super) fn narrow8(&mut self, a: &Value) -> Value {
        let a = self.shift_down(Type::Int32, a, 1 << 14, 15, 30);
        let a = self.clamp(Type::Int32, &a, -128, 127);
        self.cast(&a, Type::Int8)
    }

    /// `view8` of `int32` values of 16 bits.
    pub(super) fn view8(&mut self, x: &Value, m: i16) -> Value {
        let product = self.mul_scalar(Type::Int32, x, i64::from(m));
        self.narrow8(&product)
    }

    /// `int8` times `int8`, summed in `int32`.
    pub(super) fn matmul(&mut self, a: &Value, b: &Value) -> Value {
        self.op("MatMulInteger", &[a, b], &[])
    }

    pub(super) fn gather(&mut self, data: &Value, indices: &Value) -> Value {
        self.op("Gather", &[data, indices], &[Attr::Int("axis", 0)])
    }

    pub(super) fn reduce_sum(&mut self, a: &Value, axis: i64) -> Value {
        let axes = self.constant(Type::Int64, &[1], [axis]);
        self.op("ReduceSum", &[a, &axes], &[Attr::Int("keepdims", 1)])
    }

    /// Sum of `int64` elements below `2^offset_log2` in size. tract 0.23.9 sums integers of any width in 32 bits, so the upper and the lower
    /// bits (16) are summed apart; both sums fit for fewer than `2^15` elements below `2^32`.
    pub(super) fn wide_sum(&mut self, a: &Value, axis: i64, offset_log2: u32) -> Value {
        let high = self.shift_down(Type::Int64, a, 0, 16, offset_log2);
        let back = self.mul_scalar(Type::Int64, &high, -(1 << 16));
        let low = self.add(a, &back);
        let [high, low] = [high, low].map(|part| self.reduce_sum(&part, axis));
        let high = self.mul_scalar(Type::Int64, &high, 1 << 16);
        self.add(&high, &low)
    }

    /// Elements `from..to` of `axis`.
    pub(super) fn slice(&mut self, a: &Value, axis: usize, from: usize, to: usize) -> Value {
        let [from, to, axis] = [from, to, axis].map(|v| self.constant(Type::Int64, &[1], [v as i64]));
        self.op("Slice", &[a, &from, &to, &axis], &[])
    }

    pub(super) fn reshape(&mut self, a: &Value, dims: &[usize]) -> Value {
        let shape = self.constant(Type::Int64, &[dims.len()], dims.iter().map(|&d| d as i64));
        self.op("Reshape", &[a, &shape], &[])
    }

    pub(super) fn transpose(&mut self, a: &Value, order: &[i64]) -> Value {
        self.op("Transpose", &[a], &[Attr::Ints("perm", order)])
    }

    pub(super) fn concat(&mut self, parts: &[&Value], axis: i64) -> Value {
        self.op("Concat", parts, &[Attr::Int("axis", axis)])
    }
}

fn value_info(name: &str, ty: Type, dims: &[usize]) -> ValueInfo {
    let dim = dims.iter().map(|&d| Dimension { dim_value: Some(d as i64) }).collect();
    let tensor_type = Some(TensorType { elem_type: ty as i32, shape: Some(Shape { dim }) });
    ValueInfo { name: name.to_owned(), r#type: Some(TypeInfo { tensor_type }) }
}

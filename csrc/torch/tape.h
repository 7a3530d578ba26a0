// Calls of bindings, kept to be run again without Python and the dispatcher between them.
//
// While a thread records, a binding that computes into a given result keeps that call: its
// arguments and the result it allocated. Running the tape computes all of them again, in order,
// from what the argument tensors hold by then, with every check a call makes. A decode step of 140
// ops on one row is memory-bound, and streams more than the second-level cache holds between two
// visits to the interpreter: docs/ladders/few_rows.md has what that cost.
#pragma once

#include <functional>
#include <optional>

#include "tensors.h"

namespace flashvl {

// This thread is recording.
bool recording();

// Appends a call to this thread's recording.
void keep(std::function<void()> call);

// function(std::nullopt, arguments...), which allocates its result and returns it; on a tape, the
// call with that result in place of std::nullopt.
template <class Function, class... Arguments>
Tensor taped(Function function, const Arguments&... arguments) {
  const Tensor result = function(std::nullopt, arguments...);
  if (recording()) keep([=] { function(result, arguments...); });
  return result;
}

}  // namespace flashvl

#pragma once
#include "augment_plan.h"
namespace {
inline void back_view(const AugmentCall&, const Needs&, int64_t, int64_t, Scratch&) {}
}

#pragma once

/// Attention in almost linear time by convolution bases. See types.h for the conventions.
#include "convbasis/attention.h"
#include "convbasis/backward.h"
#include "convbasis/basis.h"
#include "convbasis/cost_model.h"
#include "convbasis/device.h"
#include "convbasis/error.h"
#include "convbasis/logit_range.h"
#include "convbasis/lowrank.h"
#include "convbasis/mask.h"
#include "convbasis/options.h"
#include "convbasis/polynomial.h"
#include "convbasis/recover.h"
#include "convbasis/report.h"
#include "convbasis/toeplitz.h"
#include "convbasis/types.h"
#include "convbasis/version.h"

package observe

import "github.com/flowrun/flowrun/stages/observe/tfevents"

// Scalars are the numbers of a step, for an event file.
func (s Step) Scalars() []tfevents.Scalar { return scalars(s.fields()) }

// Scalars are the numbers of a validation, for an event file.
func (v Val) Scalars() []tfevents.Scalar { return scalars(v.fields()) }

func scalars(fields []field) (list []tfevents.Scalar) {
	for _, f := range fields {
		switch x := f.value.(type) {
		case float64:
			list = append(list, tfevents.Scalar{Tag: f.name, Value: x})
		case int:
			if f.name != "step" {
				list = append(list, tfevents.Scalar{Tag: f.name, Value: float64(x)})
			}
		case int64:
			list = append(list, tfevents.Scalar{Tag: f.name, Value: float64(x)})
		}
	}
	return list
}

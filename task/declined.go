package task

import "slices"

// DeclinedBy returns the devices that have refused the task with its present model, in the order
// of their answers: another try there would end the same way.
func (t *Task) DeclinedBy() []string {
	if t.Progress == nil {
		return nil
	}
	return DeclinedBy(t.Model, t.Progress.Attempts)
}

// DeclinedBy returns the devices that have refused a task with a model, from its attempts.
func DeclinedBy(model string, attempts []Attempt) (devices []string) {
	for i := range attempts {
		a := &attempts[i]
		if (a.Class == ClassDeclined || a.Class == ClassInvalid) && a.Model == model && !slices.Contains(devices, a.DeviceID) {
			devices = append(devices, a.DeviceID)
		}
	}
	return devices
}

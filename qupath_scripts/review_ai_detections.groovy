/*
 * Adds a menu "AI review" to QuPath's window, to go through the regions that hnscc-qp found.
 *
 *   Next      Shift+N   centre the next smaller region that has no verdict yet; the largest comes first
 *   Previous  Shift+P   the same towards the larger ones
 *   Accept    Shift+Y   the selected regions become annotations, named "from AI"; then on to the next
 *   Reject    Shift+X   the selected regions get the class "AI: Rejected"; then on to the next
 *
 * An accepted region keeps its shape, measurements and id. Who judged, and when, is in an annotation's
 * description and in a rejected detection's name; also, where QuPath keeps it, in the metadata. To change
 * your mind: accept a rejected region, or give it the class "AI: Tumor" again; Edit > Undo works too.
 * Save the image as usual.
 *
 * How to run it: drop this file on QuPath's window, then Run, once each time QuPath is started.
 * For QuPath 0.4 to 0.7. For research use only, not for diagnosis.
 */
import java.time.Instant
import java.time.temporal.ChronoUnit
import qupath.lib.common.ColorTools
import qupath.lib.objects.PathObjects
import qupath.lib.objects.classes.PathClass
import static qupath.lib.gui.scripting.QPEx.getQuPath
import static qupath.lib.scripting.QP.getCurrentHierarchy

// Change these two if need be.
def reviewer = System.getProperty('user.name')
def acceptedClass = 'Tumor'

def window = getQuPath()
if (window == null) {
    println 'Regions are reviewed in QuPath\'s window: run this script there.'
    return
}

def say = { message ->
    println message
    def dialogs
    try {
        dialogs = Class.forName('qupath.fx.dialogs.Dialogs')
    } catch (ClassNotFoundException ignored) {  // QuPath 0.4
        dialogs = Class.forName('qupath.lib.gui.dialogs.Dialogs')
    }
    dialogs.showInfoNotification('AI review', message)
}

def className = { item -> item.getPathClass() == null ? '' : item.getPathClass().toString() }

// The largest first; among equals the id decides. An accepted region has its detection's place still.
def order = { a, b ->
    b.getROI().getArea() <=> a.getROI().getArea() ?: a.getID().toString() <=> b.getID().toString()
}

def go = { hierarchy, boolean forward, from ->
    def waiting = hierarchy.getDetectionObjects().findAll { className(it) == 'AI: Tumor' }.toSorted(order)
    def hasPlace = from != null && from.hasROI()
    def target
    if (forward) {
        target = waiting.find { !hasPlace || order(it, from) > 0 }
    } else {
        target = waiting.reverse().find { !hasPlace || order(it, from) < 0 }
    }
    if (target == null) {
        return waiting.isEmpty() ? 'all regions are reviewed' :
            'no ' + (forward ? 'smaller' : 'larger') + ' region left; of the others ' + waiting.size() + ' to review'
    }
    hierarchy.getSelectionModel().setSelectedObject(target)
    window.getViewer()?.centerROI(target.getROI())
    return 'region ' + (waiting.indexOf(target) + 1) + ' of ' + waiting.size() + ' to review'
}

// Before QuPath 0.5 objects have no metadata of their own, detections before 0.6.
def note = { item, values ->
    try {
        item.getMetadata().putAll(values)
    } catch (MissingMethodException | UnsupportedOperationException ignored) {
    }
}

def accept = { hierarchy, items, time ->
    def accepted = items.collect { item ->
        def annotation = PathObjects.createAnnotationObject(
            item.getROI(), PathClass.fromString(acceptedClass), item.getMeasurementList())
        annotation.setID(item.getID())  // by its id the import knows that the region is dealt with
        annotation.setName(item.getName() == null ? 'from AI' : item.getName() + '; from AI')
        annotation.setDescription('AI detection, accepted by ' + reviewer + ', ' + time)
        note(annotation, ['AI origin': item.getID().toString(), 'AI reviewer': reviewer, 'AI reviewed at': time])
        return annotation
    }
    hierarchy.removeObjects(items, true)
    hierarchy.addObjects(accepted)
    hierarchy.getSelectionModel().setSelectedObject(accepted.last())
}

def reject = { hierarchy, items, time ->
    def rejected = PathClass.fromString('AI: Rejected', ColorTools.packRGB(128, 128, 128))
    items.each { item ->
        def verdict = 'rejected by ' + reviewer + ', ' + time
        item.setPathClass(rejected)
        item.setName(item.getName() == null ? verdict : item.getName() + '; ' + verdict)
        note(item, ['AI reviewer': reviewer, 'AI reviewed at': time])
    }
    hierarchy.fireObjectClassificationsChangedEvent(this, items)
}

def judge = { hierarchy, verdict, word, classes ->
    def items = hierarchy.getSelectionModel().getSelectedObjects().findAll {
        it.isDetection() && classes.contains(className(it))
    }.toSorted(order)
    if (items.isEmpty()) {
        return 'select a region of class ' + classes.join(' or ') + ' first, for example by Next'
    }
    verdict(hierarchy, items, Instant.now().truncatedTo(ChronoUnit.SECONDS).toString())
    return items.size() + ' ' + word + '; ' + go(hierarchy, true, items.last())
}

def addCommand = { name, keys, action ->
    window.installCommand('AI review>' + name, {
        def hierarchy = getCurrentHierarchy()
        say(hierarchy == null ? 'open an image first' : action(hierarchy))
    } as Runnable)
    window.setAccelerator('AI review>' + name, keys)
}
addCommand('Next', 'shift+n') { go(it, true, it.getSelectionModel().getSelectedObject()) }
addCommand('Previous', 'shift+p') { go(it, false, it.getSelectionModel().getSelectedObject()) }
addCommand('Accept', 'shift+y') { judge(it, accept, 'accepted', ['AI: Tumor', 'AI: Rejected']) }
addCommand('Reject', 'shift+x') { judge(it, reject, 'rejected', ['AI: Tumor']) }
println 'The menu "AI review" is ready: Next Shift+N, Previous Shift+P, Accept Shift+Y, Reject Shift+X. ' +
    'Verdicts are noted as those of ' + reviewer + '.'
